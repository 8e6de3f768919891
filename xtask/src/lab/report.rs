//! What the guest says of its tests, line by line, and what is to be told of it. Pure.

/// How the guest begins what it says itself, before the word and what it is about.
pub const MARK: &str = "tt-lab:";

/// How tests end.
const ENDS: [&str; 2] = ["ok", "FAILED"];

/// What was run, and how it ended.
#[derive(Debug, Default)]
pub struct Report {
    suite: String,
    /// The test that has said something before its end.
    open: Option<String>,
    rows: Vec<(String, String)>,
    has_ended: bool,
}

impl Report {
    /// One line of the guest's console.
    pub fn line(&mut self, line: &str) {
        let line = line.trim();
        let Some(said) = line.strip_prefix(MARK) else {
            if let Some((name, end)) = test(line) {
                self.ended(name, end);
            } else if let Some((name, said)) = begun(line) {
                match skipped(said) {
                    Some((of, reason)) => self.skip(of, reason),
                    None => self.open = Some(name.to_owned()),
                }
            } else if ENDS.contains(&line) {
                if let Some(name) = self.open.take() {
                    self.ended(&name, line);
                }
            } else if let Some((name, reason)) = skipped(line) {
                self.rows.retain(|(row, _)| !row.ends_with(&format!("::{name}")));
                self.skip(name, reason);
            }
            return;
        };
        match said.trim().split_once(' ') {
            Some(("begin", suite)) => suite.clone_into(&mut self.suite),
            Some(("failed", what)) => self.rows.push((what.to_owned(), "FAILED".to_owned())),
            _ => self.has_ended |= said.trim() == "end",
        }
    }

    fn ended(&mut self, name: &str, end: &str) {
        self.open = None;
        self.rows.push((format!("{} {name}", self.suite), end.to_owned()));
    }

    /// Something was not run.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.rows.push((name.to_owned(), format!("skipped: {reason}")));
    }

    /// Whether the guest said that all was run.
    pub fn came_to_its_end(&self) -> bool {
        self.has_ended
    }

    /// How many did not end well.
    pub fn failures(&self) -> usize {
        self.rows.iter().filter(|(_, end)| end == "FAILED").count()
    }

    /// A line for each.
    pub fn text(&self) -> String {
        let width = self.rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        self.rows.iter().map(|(name, end)| format!("{name:width$}  {end}\n")).collect()
    }
}

/// `test machine::conforms ... ok`.
fn test(line: &str) -> Option<(&str, &str)> {
    begun(line).filter(|(_, end)| ENDS.contains(end))
}

/// `test zvols_conform ... what it says itself`.
fn begun(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.split_once(" ... ")
}

/// `SKIPPED name: reason`.
fn skipped(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("SKIPPED ")?.split_once(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_talks_is_reported_at_its_end() {
        let mut report = Report::default();
        report.line("tt-lab: begin real");
        for line in ["test conform ... zvol   create: yes", "zvol   space: yes", "ok", "ok"] {
            report.line(line);
        }
        assert_eq!(report.text(), "real conform  ok\n");
    }

    #[test]
    fn a_test_that_was_skipped_is_not_told_as_good() {
        let mut report = Report::default();
        report.line("tt-lab: begin real");
        for line in ["test zvols ... SKIPPED zvols: no pool", "ok", "test sets ... ok"] {
            report.line(line);
        }
        assert_eq!(report.text(), "zvols      skipped: no pool\nreal sets  ok\n");
    }

    #[test]
    fn a_guest_is_reported() {
        let mut report = Report::default();
        for line in [
            "[    1.0] a kernel\r",
            "tt-lab: begin qemu\r",
            "running 3 tests\r",
            "test machine::conforms ... ok\r",
            "test memory::stands ... FAILED\r",
            "SKIPPED stands_too: no room\r",
            "test result: FAILED. 1 passed\r",
            "tt-lab: failed qemu\r",
        ] {
            report.line(line);
        }
        assert!(!report.came_to_its_end());
        report.line("tt-lab: end\r");
        assert!(report.came_to_its_end());
        assert_eq!(report.failures(), 2);
        assert_eq!(
            report.text(),
            "qemu machine::conforms  ok\nqemu memory::stands     FAILED\n\
             stands_too              skipped: no room\nqemu                    FAILED\n"
        );
    }
}
