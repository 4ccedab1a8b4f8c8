//! What the demo prints: one table that is redrawn on a terminal, one line per second elsewhere.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use super::load::Tally;

const BAR: usize = 30;

pub(super) struct Screen {
    terminal: bool,
    /// Lines of the table on the terminal now.
    drawn: usize,
    plain_due: Duration,
}

impl Screen {
    pub(super) fn new() -> Self {
        // Nobody looks on where tests run by themselves, though the output may be a serial line.
        let terminal = io::stdout().is_terminal() && env::var_os("CI").is_none();
        Self { terminal, drawn: 0, plain_due: Duration::ZERO }
    }

    /// A line that stays.
    pub(super) fn say(&mut self, text: &str) {
        self.clear();
        println!("{text}");
    }

    /// The state of the last moments. `over` is the time that the tally covers.
    pub(super) fn shares(&mut self, at: Duration, names: &[String], tally: &Tally, over: Duration) {
        if self.terminal {
            self.clear();
            let lines = table(at, names, tally, over);
            print!("{}", lines.iter().map(|line| format!("{line}\n")).collect::<String>());
            self.drawn = lines.len();
            // A terminal that is gone is noticed by whoever started this.
            let _ = io::stdout().flush();
        } else if at >= self.plain_due {
            self.plain_due = at + Duration::from_secs(1);
            println!("{}", plain(at, names, tally, over));
        }
    }

    fn clear(&mut self) {
        if self.drawn > 0 {
            print!("\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
        }
    }
}

fn rate(tally: &Tally, over: Duration) -> f64 {
    tally.answered() as f64 / over.as_secs_f64().max(0.001)
}

fn plain(at: Duration, names: &[String], tally: &Tally, over: Duration) -> String {
    let shares: String = names.iter().map(|name| format!("  {name} {:5.1} %", tally.share(name))).collect();
    format!("{:6.1} s  {:5.0} requests/s{shares}  failed {}", at.as_secs_f64(), rate(tally, over), tally.failed)
}

fn table(at: Duration, names: &[String], tally: &Tally, over: Duration) -> Vec<String> {
    let head = format!("{:6.1} s  {:5.0} requests/s, failed {}", at.as_secs_f64(), rate(tally, over), tally.failed);
    let rows = names.iter().map(|name| {
        let share = tally.share(name);
        let full = (share / 100.0 * BAR as f64).round() as usize;
        format!("  {name}  {share:5.1} %  {}{}", "#".repeat(full.min(BAR)), ".".repeat(BAR - full.min(BAR)))
    });
    std::iter::once(head).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_and_a_table_say_the_same() {
        let mut tally = Tally::default();
        tally.by_backend.insert("web1".to_owned(), 30);
        tally.by_backend.insert("web2".to_owned(), 10);
        tally.failed = 2;
        let names = ["web1", "web2", "web3"].map(str::to_owned);
        let (at, over) = (Duration::from_millis(3500), Duration::from_millis(500));
        assert_eq!(
            plain(at, &names, &tally, over),
            "   3.5 s     80 requests/s  web1  75.0 %  web2  25.0 %  web3   0.0 %  failed 2"
        );
        let table = table(at, &names, &tally, over);
        assert_eq!(table.len(), 4);
        assert_eq!(table[2], "  web2   25.0 %  ########......................");
    }
}
