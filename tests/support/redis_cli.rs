//! Another client of Redis: `redis-cli`.

#![allow(dead_code)] // each test uses a part of it

use std::io::Write;
use std::process::{Command, Stdio};

/// What `redis-cli` prints, on one line a value.
pub fn cli(port: u16, args: &[&str]) -> String {
    let mut command = Command::new("redis-cli");
    let out = command.args(["-p", &port.to_string()]).args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim_end().to_owned()
}

/// Runs many commands, one a line.
pub fn cli_all(port: u16, commands: &str) -> String {
    let mut child = Command::new("redis-cli")
        .args(["-p", &port.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let commands = commands.to_owned();
    let writing = std::thread::spawn(move || stdin.write_all(commands.as_bytes()).unwrap());
    let out = child.wait_with_output().unwrap();
    writing.join().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).trim_end().to_owned();
    assert!(out.status.success() && !said.contains("ERR"), "{said}");
    said
}
