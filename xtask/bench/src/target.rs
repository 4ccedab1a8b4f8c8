//! What rows have to reach.

/// A row's bound.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// At most so many times the textbook balancer's cost.
    Textbook(f64),
    /// At most so many nanoseconds over a program that passes everything, or so many times the
    /// textbook balancer's cost.
    OverPass { ns: f64, textbook: f64 },
    /// At most so many percent above another row.
    PercentOver { row: String, percent: f64 },
    /// At most so many nanoseconds above another row.
    NsOver { row: String, ns: f64 },
}

/// A row's cost, net of the harness, and what it is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub net_ns: f64,
    pub textbook_ratio: Option<f64>,
    /// Of the row that the target names.
    pub other_net_ns: Option<f64>,
}

impl Target {
    /// Whether the row reaches it; `None` where it was not compared with what it must be.
    pub fn met(&self, cost: &Cost) -> Option<bool> {
        match self {
            Self::Textbook(ratio) => Some(cost.textbook_ratio? <= *ratio),
            Self::OverPass { ns, textbook } => {
                Some(cost.net_ns <= *ns || cost.textbook_ratio.is_some_and(|ratio| ratio <= *textbook))
            }
            Self::PercentOver { percent, .. } => Some(cost.net_ns <= cost.other_net_ns? * (1.0 + percent / 100.0)),
            Self::NsOver { ns, .. } => Some(cost.net_ns <= cost.other_net_ns? + ns),
        }
    }

    /// The row that it is compared with.
    pub fn other(&self) -> Option<&str> {
        match self {
            Self::PercentOver { row, .. } | Self::NsOver { row, .. } => Some(row),
            Self::Textbook(_) | Self::OverPass { .. } => None,
        }
    }

    /// In words, for table and JSON.
    pub fn words(&self) -> String {
        match self {
            Self::Textbook(ratio) => format!("<= {ratio:.2} x textbook"),
            Self::OverPass { ns, textbook } => format!("<= {ns} ns over pass, or <= {textbook:.2} x textbook"),
            Self::PercentOver { row, percent } => format!("<= {percent} % over `{row}`"),
            Self::NsOver { row, ns } => format!("<= {ns} ns over `{row}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(net_ns: f64, textbook_ratio: Option<f64>, other_net_ns: Option<f64>) -> Cost {
        Cost { net_ns, textbook_ratio, other_net_ns }
    }

    #[test]
    fn a_ratio_is_met_up_to_its_bound_and_unknown_without_a_textbook() {
        let target = Target::Textbook(0.3);
        assert_eq!(target.met(&cost(10.0, Some(0.3), None)), Some(true));
        assert_eq!(target.met(&cost(10.0, Some(0.31), None)), Some(false));
        assert_eq!(target.met(&cost(10.0, None, None)), None);
    }

    #[test]
    fn either_of_two_bounds_is_enough_for_a_packet_that_is_passed() {
        let target = Target::OverPass { ns: 12.0, textbook: 0.5 };
        assert_eq!(target.met(&cost(11.0, Some(0.9), None)), Some(true));
        assert_eq!(target.met(&cost(20.0, Some(0.5), None)), Some(true));
        assert_eq!(target.met(&cost(20.0, Some(0.9), None)), Some(false));
        assert_eq!(target.met(&cost(20.0, None, None)), Some(false));
    }

    #[test]
    fn rows_are_compared_by_percent_or_by_nanoseconds() {
        let percent = Target::PercentOver { row: "a".into(), percent: 10.0 };
        assert_eq!(percent.met(&cost(109.0, None, Some(100.0))), Some(true));
        assert_eq!(percent.met(&cost(111.0, None, Some(100.0))), Some(false));
        assert_eq!(percent.met(&cost(111.0, None, None)), None);
        let ns = Target::NsOver { row: "a".into(), ns: 15.0 };
        assert_eq!(ns.met(&cost(115.0, None, Some(100.0))), Some(true));
        assert_eq!(ns.other(), Some("a"));
    }
}
