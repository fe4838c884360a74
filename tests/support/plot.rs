//! A run of an autoscaler, drawn.

use std::fmt::Write as _;

/// What was seen at one time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Seconds of the autoscaler's clock.
    pub at: f64,
    /// Lines a second that are written, and that are stored.
    pub load: f64,
    pub stored: f64,
    /// Lines that are stored.
    pub total: u64,
    /// `None`: nobody told.
    pub lag: Option<f64>,
    pub processes: f64,
}

/// A line's name, and its height at a sample.
type Line = (&'static str, fn(&Sample) -> f64);

const WIDTH: f64 = 900.0;
const LEFT: f64 = 70.0;
const HEIGHT: f64 = 130.0;
const GAP: f64 = 46.0;

/// A panel each: the load and what is stored of it, the lag, the processes.
pub fn svg(samples: &[Sample], title: &str, target: f64) -> String {
    let end = samples.last().map_or(1.0, |last| last.at.max(1.0));
    let panels: [(&str, Vec<Line>); 3] = [
        ("lines a second", vec![("load", |it| it.load), ("stored", |it| it.stored)]),
        ("lag, lines", vec![("lag", |it| it.lag.unwrap_or_default())]),
        ("writers", vec![("writers", |it| it.processes)]),
    ];
    let height = GAP + panels.len() as f64 * (HEIGHT + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">{title}</text>\n",
        LEFT + WIDTH + 30.0
    );
    for (index, (name, lines)) in panels.iter().enumerate() {
        let top = GAP + index as f64 * (HEIGHT + GAP);
        let most = lines.iter().flat_map(|(_, of)| samples.iter().map(of)).fold(1.0, f64::max);
        panel(&mut svg, top, name, most, end);
        if index == 1 {
            let y = top + HEIGHT * (1.0 - target / most);
            writeln!(
                svg,
                "<path d=\"M{LEFT} {y:.1}h{WIDTH}\" stroke=\"#999\" stroke-dasharray=\"4 4\"/>\
                 <text x=\"{}\" y=\"{:.1}\" fill=\"#666\" text-anchor=\"end\">{target} a writer</text>",
                LEFT + WIDTH - 4.0,
                y - 4.0
            )
            .unwrap();
        }
        for ((label, of), (colour, at)) in lines.iter().zip([("#1b6ac9", 0.0), ("#d9822b", 60.0)]) {
            let mut path = String::new();
            for sample in samples {
                let (x, y) =
                    (LEFT + WIDTH * sample.at / end, top + HEIGHT * (1.0 - of(sample) / most));
                let word = if path.is_empty() { 'M' } else { 'L' };
                write!(path, "{word}{x:.1} {y:.1}").unwrap();
            }
            writeln!(
                svg,
                "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{label}</text>",
                LEFT + 130.0 + at,
                top - 8.0
            )
            .unwrap();
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Axes.
fn panel(svg: &mut String, top: f64, name: &str, most: f64, end: f64) {
    let bottom = top + HEIGHT;
    writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.1}\">{name}</text>\
         <path d=\"M{LEFT} {top}V{bottom}H{}\" fill=\"none\" stroke=\"#444\"/>\
         <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{most:.0}</text>\
         <text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\">0</text>",
        top - 8.0,
        LEFT + WIDTH,
        LEFT - 6.0,
        top + 10.0,
        LEFT - 6.0
    )
    .unwrap();
    let step = [30.0, 60.0, 120.0, 300.0, 600.0].into_iter().find(|it| end / it <= 12.0);
    let step = step.unwrap_or(1200.0);
    let mut at = 0.0;
    while at <= end {
        let x = LEFT + WIDTH * at / end;
        let (y, minutes) = (bottom + 14.0, at / 60.0);
        writeln!(
            svg,
            "<path d=\"M{x:.1} {bottom}v4\" stroke=\"#444\"/>\
             <text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{minutes} min</text>"
        )
        .unwrap();
        at += step;
    }
}
