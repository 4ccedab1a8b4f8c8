//! What a machine told, line by line, and whether it is what it should be.

use std::time::{Duration, Instant};

use super::{image::MARK, suites::Suite};
use crate::suite::Sum;

/// Printed for each program by the test of the verifier's work: `verifier, Linux 6.1: lb 250320 instructions`.
const VERIFIER: &str = "verifier, Linux ";

/// One kernel's.
pub(super) struct Results {
    begun: Instant,
    /// As the kernel names itself, and how long it took to get there.
    kernel: Option<(String, Duration)>,
    /// Instructions that the verifier walked, by program.
    verified: Vec<(String, u64)>,
    suites: Vec<SuiteResult>,
    /// What the emulator has used of the processors.
    pub(super) cost: Duration,
    /// All suites have run.
    done: bool,
    /// Why it ended otherwise.
    pub(super) trouble: Option<String>,
}

struct SuiteResult {
    name: String,
    is_one_test: bool,
    begun: Option<Instant>,
    took: Option<Duration>,
    sum: Sum,
    status: Option<i32>,
}

impl Results {
    pub(super) fn new(suites: &[Suite]) -> Self {
        let suites = suites.iter().map(|suite| SuiteResult {
            name: suite.name.clone(),
            is_one_test: suite.is_one_test(),
            begun: None,
            took: None,
            sum: Sum::default(),
            status: None,
        });
        Self {
            begun: Instant::now(),
            kernel: None,
            verified: Vec::new(),
            suites: suites.collect(),
            cost: Duration::ZERO,
            done: false,
            trouble: None,
        }
    }

    /// Takes in one line.
    pub(super) fn read(&mut self, line: &str) {
        match line.strip_prefix(MARK) {
            Some(told) => self.told(told),
            None => self.printed(line),
        }
    }

    /// A line of the machine's own script.
    fn told(&mut self, told: &str) {
        match told.split(' ').collect::<Vec<_>>()[..] {
            ["kernel", name] => self.kernel = Some((name.to_owned(), self.begun.elapsed())),
            ["begin", name] => {
                if let Some(suite) = self.suite(name) {
                    suite.begun = Some(Instant::now());
                }
            }
            ["end", name, status] => {
                if let Some(suite) = self.suite(name) {
                    suite.status = status.parse().ok();
                    suite.took = suite.begun.map(|begun| begun.elapsed());
                }
            }
            ["done"] => self.done = true,
            _ => self.trouble = Some(format!("the machine said `{told}`")),
        }
    }

    /// A line of a test program.
    fn printed(&mut self, line: &str) {
        if let Some((_, rest)) = line.strip_prefix(VERIFIER).and_then(|rest| rest.split_once(": "))
            && let [program, number, "instructions,", ..] = rest.split(' ').collect::<Vec<_>>()[..]
            && let Ok(number) = number.parse()
        {
            self.verified.push((program.to_owned(), number));
        }
        if let Some(suite) = self.suites.iter_mut().find(|suite| suite.begun.is_some() && suite.status.is_none()) {
            suite.sum.read(line);
        }
    }

    fn suite(&mut self, name: &str) -> Option<&mut SuiteResult> {
        self.suites.iter_mut().find(|suite| suite.name == name)
    }

    /// Everything ran and passed, and something was there to run.
    pub(super) fn are_good(&self) -> bool {
        let passed: u64 = self.suites.iter().map(|suite| suite.counted().passed).sum();
        self.done && self.trouble.is_none() && passed > 0 && self.suites.iter().all(SuiteResult::is_good)
    }

    /// A table for people.
    pub(super) fn tell(&self) -> String {
        let mut text = match &self.kernel {
            Some((name, after)) => format!("Linux {name}: up after {:.1} s", after.as_secs_f32()),
            None => "a kernel that did not come up".to_owned(),
        };
        match self.verified.iter().map(|(program, count)| format!("{program} {count}")).collect::<Vec<_>>()[..] {
            [] => text.push_str("; the test that tells the verifier's work was not run\n"),
            ref programs => text.push_str(&format!(
                "; of 1,000,000 instructions for each program its verifier walked: {}\n",
                programs.join(", ")
            )),
        }
        for suite in &self.suites {
            text.push_str(&suite.tell());
        }
        text.push_str(&format!("  {:.0} s of processor time in all\n", self.cost.as_secs_f32()));
        if let Some(trouble) = &self.trouble {
            text.push_str(&format!("  failed: {trouble}\n"));
        } else if !self.done {
            text.push_str("  failed: it ended before all was run\n");
        }
        text
    }
}

impl SuiteResult {
    /// A program that is one test counts by how it ended.
    fn counted(&self) -> Sum {
        let mut sum = Sum::default();
        sum.add(&self.sum);
        if self.is_one_test {
            sum.passed = u64::from(self.status == Some(0));
            sum.failed = u64::from(self.status.is_some_and(|status| status != 0));
        }
        sum
    }

    fn is_good(&self) -> bool {
        let counted = self.counted();
        self.status == Some(0) && counted.failed == 0 && counted.ignored == 0
    }

    fn tell(&self) -> String {
        let sum = self.counted();
        let took = match (self.took, self.status) {
            (Some(took), Some(0)) => format!("{:.0} s", took.as_secs_f32()),
            (Some(took), Some(status)) => format!("{:.0} s, ended with {status}", took.as_secs_f32()),
            _ if self.begun.is_some() => "did not end".to_owned(),
            _ => "did not begin".to_owned(),
        };
        let ignored = if sum.ignored > 0 { format!(", {} ignored", sum.ignored) } else { String::new() };
        format!("  {:22} {:3} passed, {} failed{ignored}; {took}\n", self.name, sum.passed, sum.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(one_test: &[bool]) -> Results {
        let mut results = Results::new(&[]);
        for (number, is_one_test) in one_test.iter().enumerate() {
            let (name, is_one_test) = (format!("s{number}"), *is_one_test);
            let (begun, took, sum, status) = (None, None, Sum::default(), None);
            results.suites.push(SuiteResult { name, is_one_test, begun, took, sum, status });
        }
        results
    }

    fn read(results: &mut Results, text: &str) {
        text.lines().for_each(|line| results.read(line));
    }

    const GOOD: &str = "@lb-vm kernel 6.1.0\n@lb-vm begin s0\nverifier, Linux 6.1: lb 123 instructions, not written down\n\
                        test result: ok. 2 passed; 0 failed; 0 ignored; finished in 1.00s\n@lb-vm end s0 0\n";

    #[test]
    fn what_a_machine_tells_is_summed_up() {
        let mut results = results(&[false, true]);
        read(&mut results, GOOD);
        read(&mut results, "@lb-vm begin s1\nsome words\n@lb-vm end s1 0\n@lb-vm done\n");
        assert!(results.are_good());
        let told = results.tell();
        assert!(told.starts_with("Linux 6.1.0: up after ") && told.contains("walked: lb 123\n"), "{told}");
        assert!(told.contains("2 passed, 0 failed") && told.contains("1 passed, 0 failed"), "{told}");
    }

    #[test]
    fn an_end_before_its_time_is_a_failure() {
        let mut results = results(&[false]);
        read(&mut results, GOOD);
        assert!(!results.are_good());
        assert!(results.tell().contains("ended before all was run"));
    }

    #[test]
    fn a_suite_that_fails_or_dies_is_a_failure() {
        for (end, status) in [("test result: FAILED. 1 passed; 1 failed; 0 ignored", 101), ("killed", 137)] {
            let mut results = results(&[false]);
            read(&mut results, &format!("@lb-vm begin s0\n{end}\n@lb-vm end s0 {status}\n@lb-vm done\n"));
            assert!(!results.are_good(), "{end}");
            assert!(results.tell().contains(&format!("ended with {status}")), "{}", results.tell());
        }
    }

    #[test]
    fn ignored_tests_and_no_tests_are_failures() {
        for counts in ["1 passed; 0 failed; 1 ignored", "0 passed; 0 failed; 0 ignored"] {
            let mut results = results(&[false]);
            read(&mut results, &format!("@lb-vm begin s0\ntest result: ok. {counts}\n@lb-vm end s0 0\n@lb-vm done\n"));
            assert!(!results.are_good(), "{counts}");
        }
    }
}
