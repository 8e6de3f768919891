//! What a test runner said: how many tests it ran, and what tests said that they skipped. Pure.

/// How a test says that it did not run: `SKIPPED name: reason`.
const MARK: &str = "SKIPPED ";

/// What is known of a run.
#[derive(Debug, Default)]
pub struct Tests {
    /// Lines of tests that did not run, each once.
    pub skipped: Vec<String>,
    /// The closing line of nextest.
    closing: Option<String>,
    /// Sums of `cargo test`: passed, failed, ignored.
    sums: Option<[u64; 3]>,
}

impl Tests {
    /// A line that nextest printed.
    pub fn line_of_nextest(&mut self, line: &str) {
        if line.trim_start().starts_with("Summary [") {
            self.closing = Some(line.trim().to_owned());
        }
    }

    /// A line that `cargo test` printed; each test program closes with one of its own.
    pub fn line_of_cargo_test(&mut self, line: &str) {
        self.note_skip(line);
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let sums = self.sums.get_or_insert_default();
        for (sum, word) in sums.iter_mut().zip([" passed", " failed", " ignored"]) {
            let before = rest.split(';').find_map(|part| part.strip_suffix(word));
            let number = before.and_then(|text| text.rsplit(' ').next()?.parse::<u64>().ok());
            *sum += number.unwrap_or(0);
        }
    }

    /// The report that nextest writes, with what the tests printed.
    pub fn read_report(&mut self, xml: &str) {
        for line in xml.lines() {
            // An element may open on the line.
            let start = line.find(MARK).map(|at| &line[at..]);
            let line = start.map(|text| text.split("</").next().unwrap_or(text));
            if let Some(line) = line {
                self.note_skip(&unescaped(line));
            }
        }
    }

    /// The closing line of the run.
    pub fn summary(&self) -> Option<String> {
        let sums = |[passed, failed, ignored]: [u64; 3]| {
            format!("tests: {passed} passed, {failed} failed, {ignored} skipped")
        };
        self.closing.clone().or_else(|| self.sums.map(sums))
    }

    fn note_skip(&mut self, line: &str) {
        let line = line.trim();
        if line.starts_with(MARK) && !self.skipped.iter().any(|known| known == line) {
            self.skipped.push(line.to_owned());
        }
    }
}

fn unescaped(text: &str) -> String {
    let pairs = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_gives_what_was_skipped() {
        let mut tests = Tests::default();
        tests.read_report(
            "<system-out>SKIPPED a: no &quot;x&quot;\nmore</system-out>\n\
             <system-out>SKIPPED b: none</system-out>\n<system-out>SKIPPED b: none</system-out>\n",
        );
        assert_eq!(tests.skipped, ["SKIPPED a: no \"x\"", "SKIPPED b: none"]);
    }

    #[test]
    fn the_closing_line_is_the_runners() {
        let mut tests = Tests::default();
        assert_eq!(tests.summary(), None);
        tests.line_of_nextest("     Summary [   1.2s] 3 tests run: 3 passed, 1 skipped");
        assert_eq!(tests.summary().unwrap(), "Summary [   1.2s] 3 tests run: 3 passed, 1 skipped");
    }

    #[test]
    fn several_programs_are_summed() {
        let mut tests = Tests::default();
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out";
        tests.line_of_cargo_test(line);
        tests.line_of_cargo_test(line);
        tests.line_of_cargo_test("SKIPPED c: none");
        assert_eq!(tests.summary().unwrap(), "tests: 6 passed, 2 failed, 4 skipped");
        assert_eq!(tests.skipped, ["SKIPPED c: none"]);
    }
}
