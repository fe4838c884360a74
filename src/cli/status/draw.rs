//! The state as lines of text, as wide as the terminal.

use console::{Color, Style, measure_text_width, truncate_str};

use super::Seen;
use crate::spec::text::one_line;
use crate::stream::StreamStatus;
use crate::web::state::{HISTORY, Node, State};

/// From here on there is room for a minute's history.
const WIDE: usize = 100;
/// Characters of history.
const HISTORY_SHOWN: usize = 20;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What it is drawn on.
pub(super) struct Paper {
    /// In characters.
    pub width: usize,
    /// In lines; `None`: no end.
    pub height: Option<usize>,
    /// It goes to a terminal; whether that shows colours, and the user wants any, is `console`'s
    /// to know.
    pub colours: bool,
}

impl Paper {
    fn paint(&self, style: Style, text: &str) -> String {
        let style = if self.colours { style } else { style.force_styling(false) };
        style.apply_to(text).to_string()
    }

    fn dim(&self, text: &str) -> String {
        self.paint(Style::new().dim(), text)
    }

    fn bold(&self, text: &str) -> String {
        self.paint(Style::new().bold(), text)
    }

    /// No line beyond the width, and no more of them than there is room for.
    fn cut(&self, lines: &[String]) -> String {
        let shown = match self.height {
            Some(height) if lines.len() > height => height.saturating_sub(1),
            _ => lines.len(),
        };
        let mut text = String::new();
        for line in &lines[..shown] {
            let line = match measure_text_width(line) > self.width {
                true => truncate_str(line, self.width, "…"),
                false => line.as_str().into(),
            };
            text.push_str(line.trim_end());
            text.push('\n');
        }
        if shown < lines.len() {
            let more = format!("… {} more lines (in a taller window)", lines.len() - shown);
            text.push_str(&self.dim(&truncate_str(&more, self.width, "…")));
            text.push('\n');
        }
        text
    }
}

/// All of it.
pub(super) fn text(seen: &Seen, paper: &Paper) -> String {
    let lines = match seen {
        Seen::Process(state) => process(state, paper),
        Seen::Streams(streams, why) => from_streams(streams, why, paper),
    };
    paper.cut(&lines)
}

/// A message that may be long.
pub(super) fn wrapped(message: &str, paper: &Paper) -> String {
    let letters: Vec<char> = one_line(message).chars().collect();
    let lines: Vec<String> =
        letters.chunks(paper.width.max(1)).map(|line| line.iter().collect()).collect();
    paper.cut(&lines)
}

fn process(state: &State, paper: &Paper) -> Vec<String> {
    let (about, now) = (&state.about, &state.now);
    let troubles = now.troubles.iter().filter(|it| &*it.cause != "is starting").count();
    let (colour, health) = match (troubles, now.healthy) {
        (1.., _) => (Color::Red, format!("✕ {troubles} not working")),
        (0, true) => (Color::Green, "● all is well".to_owned()),
        (0, false) => (Color::Yellow, "◔ starting".to_owned()),
    };
    let up = span(now.time_us - about.started_us);
    let left = format!(
        "{}  {}",
        paper.bold(&about.file),
        paper.dim(&format!("{} · generation {} · up for {up}", about.instance, about.generation)),
    );
    let mut lines = vec![ends(&left, &paper.paint(Style::new().fg(colour).bold(), &health), paper)];
    lines.push(format!(
        "in {} · stored {} · {} stored in total · {} given up · processor {:.1} % · memory {}",
        rate(now.published_rate),
        rate(now.stored_rate),
        count(now.stored),
        count(now.dead),
        now.cpu * 100.0,
        now.memory_bytes.map_or("–".to_owned(), bytes),
    ));
    if let Some(refused) = &about.refused {
        let head = format!("✕ the last edit was refused: generation {} runs on", about.generation);
        lines.push(paper.paint(Style::new().red().bold(), &head));
        lines.extend(
            refused
                .faults
                .iter()
                .map(|it| format!("  {}", paper.paint(Style::new().red(), &one_line(it)))),
        );
    }
    lines.push(String::new());
    let widest = |of: fn(&Node) -> &str| {
        state.nodes.iter().map(|node| measure_text_width(of(node))).max().unwrap_or(0)
    };
    let name = widest(|node| &node.name).min(28);
    for (at, node) in state.nodes.iter().enumerate() {
        if at > 0 && state.nodes[at - 1].room != node.room {
            lines.push(String::new());
        }
        lines.push(row(state, at, name, paper));
        if let Some(cause) = &node.now.cause {
            let style =
                if node.now.state == "down" { Style::new().red() } else { Style::new().yellow() };
            lines.push(format!("           {}", paper.paint(style, &one_line(cause))));
        }
    }
    lines
}

fn row(state: &State, at: usize, width: usize, paper: &Paper) -> String {
    let node = &state.nodes[at];
    let role = match &*node.room {
        "source" => Style::new().green(),
        "stream" => Style::new().blue(),
        "group" => Style::new().magenta(),
        "sink" => Style::new().yellow(),
        _ => Style::new().dim(),
    };
    let (sign, style) = match &*node.now.state {
        "up" => ("● working", Style::new().green()),
        "starting" => ("◔ starting", Style::new().yellow()),
        "waiting" => ("‖ waiting", Style::new().yellow()),
        "down" => ("✕ down", Style::new().red().bold()),
        "done" => ("✓ done", Style::new().dim()),
        _ => ("↗ elsewhere", Style::new().dim()),
    };
    let mut line = format!(
        "{} {} {} ",
        paper.paint(role, &format!("{:<7}", node.room)),
        paper.bold(&padded(&node.name, width)),
        paper.paint(style, &padded(sign, 11)),
    );
    let counted = node.room != "query";
    let rate = if counted { rate(node.now.rate) } else { String::new() };
    line.push_str(&format!("{rate:>9} "));
    if paper.width >= WIDE {
        line.push_str(&paper.dim(&history(state, at)));
        line.push(' ');
    }
    line.push_str(&figures(node, state.now.time_us));
    line
}

fn figures(node: &Node, now_us: i64) -> String {
    let now = &node.now;
    let known = |figure: Option<u64>| figure.map_or("–".to_owned(), count);
    let mut parts = match &*node.room {
        "source" => vec![format!("{} published", count(now.events))],
        "sink" => vec![format!("{} stored", count(now.events))],
        "stream" => vec![format!("holds {}", known(now.length))],
        "group" => {
            let mut parts =
                vec![format!("lag {} · pending {}", known(now.lag), known(now.pending))];
            let waits = now.lag.unwrap_or(0) + now.pending.unwrap_or(0) > 0;
            if let Some(oldest_us) = now.oldest_us.filter(|at| waits && now_us - at > 1_000_000) {
                parts.push(format!("oldest {}", span(now_us - oldest_us)));
            }
            if now.dead > 0 {
                parts.push(format!("{} given up", count(now.dead)));
            }
            parts
        }
        _ => vec![node.detail.clone()],
    };
    if now.restarts > 0 {
        parts.push(format!("{} restarts", count(now.restarts)));
    }
    parts.join(" · ")
}

/// A minute of what went through a node.
fn history(state: &State, at: usize) -> String {
    let leaves = matches!(&*state.nodes[at].room, "source" | "group");
    let mut seconds = [0.0; HISTORY];
    for edge in state.edges.iter().filter(|edge| (if leaves { edge.from } else { edge.to }) == at) {
        for (second, events) in seconds.iter_mut().rev().zip(edge.history.iter().rev()) {
            *second += events;
        }
    }
    let each = HISTORY / HISTORY_SHOWN;
    let means: Vec<f64> =
        seconds.chunks(each).map(|part| part.iter().sum::<f64>() / each as f64).collect();
    let most = means.iter().copied().fold(0.0, f64::max);
    let bar = |mean: &f64| match (*mean > 0.0, most > 0.0) {
        (true, true) => BARS[((mean / most * 7.0).round() as usize).min(7)],
        _ => ' ',
    };
    means.iter().map(bar).collect()
}

fn from_streams(
    streams: &[Result<StreamStatus, (String, String)>],
    why: &str,
    paper: &Paper,
) -> Vec<String> {
    let known = |figure: Option<u64>| figure.map_or("–".to_owned(), count);
    let mut lines = vec![paper.dim(&format!("as the streams themselves say ({})", one_line(why)))];
    for stream in streams {
        lines.push(String::new());
        let status = match stream {
            Ok(status) => status,
            Err((name, error)) => {
                lines.push(format!("stream {}", paper.bold(name)));
                let error = format!("  ✕ {}", one_line(error));
                lines.push(paper.paint(Style::new().red(), &error));
                continue;
            }
        };
        let name = paper.bold(&status.stream);
        lines.push(format!("stream {name}: holds {}", known(status.length)));
        for group in &status.groups {
            let (lag, pending) = (known(group.lag), known(group.pending));
            lines.push(format!(
                "  group {}: lag {lag} · pending {pending}",
                paper.bold(&group.name)
            ));
            for member in &group.consumers {
                let idle = member.idle_ms.map_or("–".to_owned(), |ms| span(ms as i64 * 1000));
                let holds = known(member.pending);
                let text = format!("    {}: holds {holds}, silent for {idle}", member.name);
                lines.push(paper.dim(&text));
            }
        }
    }
    lines
}

/// The one at the left, the other at the right end of a line, where both have room.
fn ends(left: &str, right: &str, paper: &Paper) -> String {
    let taken = measure_text_width(left) + measure_text_width(right);
    match paper.width.checked_sub(taken).filter(|room| *room > 1) {
        Some(room) => format!("{left}{}{right}", " ".repeat(room)),
        None => format!("{right}  {left}"),
    }
}

fn padded(text: &str, width: usize) -> String {
    let text = truncate_str(text, width, "…");
    let room = width.saturating_sub(measure_text_width(&text));
    format!("{text}{}", " ".repeat(room))
}

fn count(number: u64) -> String {
    let scaled = |size: f64, unit: &str| {
        let number = number as f64 / size;
        match number {
            100.0.. => format!("{number:.0}{unit}"),
            10.0.. => format!("{number:.1}{unit}"),
            _ => format!("{number:.2}{unit}"),
        }
    };
    match number {
        0..1000 => number.to_string(),
        1000..1_000_000 => scaled(1e3, "k"),
        1_000_000..1_000_000_000 => scaled(1e6, "M"),
        _ => scaled(1e9, "G"),
    }
}

fn rate(rate: f64) -> String {
    match rate {
        0.0 => "0/s".to_owned(),
        0.0..10.0 => format!("{rate:.1}/s"),
        _ => format!("{}/s", count(rate.round() as u64)),
    }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0x4000_0000.. => format!("{:.2} GiB", bytes as f64 / f64::from(0x4000_0000)),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(0x10_0000)),
    }
}

fn span(us: i64) -> String {
    let seconds = us.max(0) / 1_000_000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(
            [0, 999, 1234, 99_940, 123_456, 7_654_321].map(count).join(" "),
            "0 999 1.23k 99.9k 123k 7.65M"
        );
        assert_eq!([0.0, 0.3, 5.0, 400.2].map(rate).join(" "), "0/s 0.3/s 5.0/s 400/s");
        assert_eq!(
            [0, 59, 61, 7300, 90_000].map(|s| span(s * 1_000_000)).join(", "),
            "0 s, 59 s, 1 min, 2 h 1 min, 1 d"
        );
    }

    #[test]
    fn nothing_is_wider_or_longer_than_the_paper() {
        let paper = Paper { width: 10, height: Some(3), colours: false };
        let lines: Vec<String> = (0..9).map(|n| format!("line {n} that is long")).collect();
        let text = paper.cut(&lines);
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().all(|line| measure_text_width(line) <= 10), "{text}");
    }
}
