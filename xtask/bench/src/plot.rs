//! Plots as SVG: horizontal bars, readable on light and on dark pages.

use std::fmt::Write as _;

/// One bar; bars of one group stand together.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    pub label: String,
    pub value: f64,
    /// A bound, drawn as a line across the bar.
    pub bound: Option<f64>,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ours,
    Other,
}

impl Kind {
    /// Of the palette of M. Okabe and K. Ito, which is told apart by almost everybody.
    const fn colour(self) -> &'static str {
        match self {
            Self::Ours => "#0072b2",
            Self::Other => "#999999",
        }
    }
}

/// A plot with its unit at the axis, and a line through all bars at `reference`.
#[derive(Clone, Debug)]
pub struct Plot<'a> {
    pub title: &'a str,
    pub unit: &'a str,
    pub reference: Option<f64>,
    pub bars: &'a [Bar],
}

const LABELS: f64 = 330.0;
const WIDTH: f64 = 520.0;
const STEP: f64 = 20.0;
const TOP: f64 = 48.0;

impl Plot<'_> {
    /// The file's content. Bars longer than the axis end in an arrow and tell their value.
    pub fn svg(&self) -> String {
        let end = self.axis_end();
        let x = |value: f64| LABELS + (value / end).clamp(0.0, 1.0) * WIDTH;
        let (width, height) = (LABELS + WIDTH + 70.0, TOP + STEP * self.bars.len() as f64 + 34.0);
        let bottom = height - 30.0;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
             <text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
            escaped(self.title)
        );
        for tick in 0..=4 {
            let (value, at) = (end * f64::from(tick) / 4.0, LABELS + WIDTH * f64::from(tick) / 4.0);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#e0e0e0\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 16.0,
                number(value)
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LABELS + WIDTH + 14.0,
            bottom + 16.0,
            escaped(self.unit)
        );
        for (row, bar) in self.bars.iter().enumerate() {
            let y = TOP + STEP * row as f64;
            let middle = y + 13.0;
            let cut = if bar.value > end { " \u{2192}" } else { "" };
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LABELS}\" y=\"{:.1}\" width=\"{:.1}\" height=\"14\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{middle:.1}\">{}{cut}</text>",
                LABELS - 8.0,
                escaped(&bar.label),
                y + 2.0,
                x(bar.value) - LABELS,
                bar.kind.colour(),
                x(bar.value) + 5.0,
                number(bar.value)
            );
            if let Some(bound) = bar.bound {
                let _ = writeln!(
                    svg,
                    "<line x1=\"{0:.1}\" y1=\"{1:.1}\" x2=\"{0:.1}\" y2=\"{2:.1}\" stroke=\"#d55e00\" stroke-width=\"2.5\"/>",
                    x(bound),
                    y,
                    y + 18.0
                );
            }
        }
        if let Some(reference) = self.reference {
            let _ = writeln!(
                svg,
                "<line x1=\"{0:.1}\" y1=\"{TOP}\" x2=\"{0:.1}\" y2=\"{bottom}\" stroke=\"#000000\" stroke-dasharray=\"4 3\"/>",
                x(reference)
            );
        }
        svg + "</svg>\n"
    }

    /// A round number that most bars fit below: a single one far out does not flatten the rest.
    fn axis_end(&self) -> f64 {
        let mut values: Vec<f64> = self.bars.iter().map(|bar| bar.value).collect();
        values.sort_by(f64::total_cmp);
        let usual = values.get(values.len() * 9 / 10).or(values.last()).copied().unwrap_or(1.0);
        let bounds = self.bars.iter().filter_map(|bar| bar.bound).chain(self.reference);
        let wanted = bounds.fold(usual, f64::max).max(f64::MIN_POSITIVE);
        let power = 10f64.powf(wanted.log10().floor());
        [1.0, 2.0, 4.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|end| *end >= wanted).unwrap_or(wanted)
    }
}

/// With as many digits as tell something.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 || value == 0.0 => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        value => format!("{value:.2}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(value: f64) -> Bar {
        Bar { label: "a < b".to_owned(), value, bound: Some(0.5), kind: Kind::Ours }
    }

    #[test]
    fn a_plot_is_well_formed_and_shows_every_bar_and_bound() {
        let bars = [bar(0.25), bar(0.75)];
        let svg = Plot { title: "T & U", unit: "x", reference: Some(1.0), bars: &bars }.svg();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("a &lt; b").count(), 2);
        assert_eq!(svg.matches("#d55e00").count(), 2);
        assert!(svg.contains("T &amp; U") && !svg.contains("a < b"));
    }

    #[test]
    fn a_bar_that_is_twice_as_long_is_drawn_twice_as_long() {
        let bars = [bar(0.25), bar(0.5)];
        let svg = Plot { title: "", unit: "", reference: Some(1.0), bars: &bars }.svg();
        assert!(svg.contains("width=\"130.0\"") && svg.contains("width=\"260.0\""), "{svg}");
    }

    #[test]
    fn one_bar_far_out_does_not_flatten_the_rest() {
        let mut bars = vec![bar(1.0); 19];
        bars.push(bar(900.0));
        let svg = Plot { title: "", unit: "", reference: None, bars: &bars }.svg();
        assert!(svg.contains("900 \u{2192}") && svg.contains("width=\"520.0\""), "{svg}");
    }
}
