//! A Chromium without a window, steered over the DevTools protocol by a pair of pipes.

#![allow(dead_code)] // each test uses a part of it

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value as Json, json};

/// How long the browser may take for what it is asked, on a busy machine.
const ANSWER: Duration = Duration::from_secs(120);
/// How long a page may take to become what is waited for.
const WAIT: Duration = Duration::from_secs(60);

/// A browser with one page.
pub struct Browser {
    child: Child,
    to: File,
    from: Receiver<Json>,
    last: u64,
    session: Option<String>,
    said: Vec<String>,
    _place: tempfile::TempDir,
}

impl Browser {
    /// A browser with an empty page.
    pub fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let (to, from) = (place.path().join("to"), place.path().join("from"));
        let made = Command::new("mkfifo").args([&to, &from]).status().unwrap();
        assert!(made.success());
        // The protocol speaks on the descriptors 3 and 4. Root may not use the sandbox.
        let script = r#"exec chromium --headless=new --no-sandbox --disable-gpu \
            --disable-dev-shm-usage --disable-background-networking --no-first-run \
            --hide-scrollbars --remote-debugging-pipe --user-data-dir="$1/profile" about:blank \
            3<"$1/to" 4>"$1/from""#;
        let child = Command::new("bash")
            .args(["-c", script, "bash"])
            .arg(place.path())
            .env("HOME", place.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let to = OpenOptions::new().write(true).open(&to).unwrap();
        let from = messages(File::open(&from).unwrap());
        let said = Vec::new();
        let mut browser = Self { child, to, from, last: 0, session: None, said, _place: place };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach);
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Asks the browser.
    pub fn call(&mut self, method: &str, params: Json) -> Json {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let answer = self.from.recv_timeout(ANSWER).expect("the browser does not answer");
            if answer["id"] == json!(self.last) {
                assert!(answer.get("error").is_none(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            self.note(&answer);
        }
    }

    /// What the page complains of is kept.
    fn note(&mut self, event: &Json) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => {
                self.said.push(params["exceptionDetails"].to_string());
            }
            Some("Runtime.consoleAPICalled")
                if matches!(params["type"].as_str(), Some("error" | "warning" | "assert")) =>
            {
                self.said.push(params["args"].to_string());
            }
            Some("Log.entryAdded")
                if matches!(params["entry"]["level"].as_str(), Some("error" | "warning")) =>
            {
                self.said.push(params["entry"].to_string());
            }
            _ => {}
        }
    }

    /// What the console has said that was no good since this was last asked.
    pub fn complaints(&mut self) -> Vec<String> {
        self.eval("1");
        std::mem::take(&mut self.said)
    }

    /// The size of the window, and `light` or `dark`.
    pub fn look(&mut self, width: u32, height: u32, scheme: &str) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false,
        });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", scheme);
    }

    /// Opens an address.
    pub fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({ "url": url }));
        assert!(opened.get("errorText").is_none(), "{url}: {opened}");
    }

    /// What an expression is.
    pub fn eval(&mut self, expression: &str) -> Json {
        let asked =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", asked);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// The text of an element; empty where it is not there.
    pub fn text(&mut self, selector: &str) -> String {
        let found = self.eval(&format!("document.querySelector({})?.innerText", json!(selector)));
        found.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression holds; how long that took.
    pub fn wait(&mut self, what: &str, expression: &str) -> Duration {
        let start = Instant::now();
        while self.eval(expression) != json!(true) {
            if start.elapsed() > WAIT {
                let shown = self.text("body");
                panic!("never came: {what}; the page shows:\n{shown}\n{:?}", self.complaints());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        start.elapsed()
    }

    /// Clicks where an element is, as a person does: whatever covers it takes the click.
    pub fn click(&mut self, selector: &str) {
        let shown = format!("!!document.querySelector({})", json!(selector));
        self.wait(selector, &shown);
        let place = self.eval(&format!(
            "(() => {{ const it = document.querySelector({}); \
               it.scrollIntoView({{ block: 'center', inline: 'center' }}); \
               const box = it.getBoundingClientRect(); \
               return [box.x + box.width / 2, box.y + box.height / 2]; }})()",
            json!(selector)
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({
                "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1,
            });
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Presses a key, by its name.
    pub fn press(&mut self, key: &str) {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({ "type": kind, "key": key, "code": key, "text": text,
                "windowsVirtualKeyCode": match key { "Enter" => 13, "Escape" => 27, "Tab" => 9,
                    "ArrowRight" => 39, _ => 0 } });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Types into what has the focus.
    pub fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// A picture of what is seen, as PNG.
    pub fn picture(&mut self, file: &Path) {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let data = shot["data"].as_str().unwrap();
        let png = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
        std::fs::write(file, png).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Messages as they come, each ending with a zero.
fn messages(pipe: File) -> Receiver<Json> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        loop {
            let mut message = Vec::new();
            match pipe.read_until(0, &mut message) {
                Ok(read) if read > 1 => {}
                _ => return,
            }
            let Ok(message) = serde_json::from_slice(&message[..message.len() - 1]) else { return };
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    receiver
}
