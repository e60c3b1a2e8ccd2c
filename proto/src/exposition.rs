//! Prometheus text (exposition format 0.0.4), as sidecar and control plane write it. Knows no metric.

use std::fmt::{Display, Write as _};

/// A page that grows by families and their samples.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// An empty page with room for so many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            text: String::with_capacity(bytes),
        }
    }

    /// Announces a family, once and before its samples; `help` has no line feed.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _infallible = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// One value; `labels` as `a="b",c="d"` with [`escaped`] values, or empty.
    pub fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _infallible = match labels {
            "" => writeln!(self.text, "{name} {value}"),
            _ => writeln!(self.text, "{name}{{{labels}}} {value}"),
        };
    }

    /// A family of one value without labels.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, "", value);
    }

    /// The page.
    #[must_use]
    pub fn text(self) -> String {
        self.text
    }
}

/// A label's value: backslash, quote and line feed have to be escaped.
#[must_use]
pub fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::{Page, escaped};

    #[test]
    fn a_page_is_families_with_their_samples() {
        let mut page = Page::with_capacity(64);
        page.family("a_total", "counter", "All.");
        let label = format!("b=\"{}\"", escaped("c\\\"\n"));
        page.sample("a_total", &label, 1);
        page.single("d", "gauge", "One.", 0.5);
        assert_eq!(
            page.text(),
            "# HELP a_total All.\n# TYPE a_total counter\na_total{b=\"c\\\\\\\"\\n\"} 1\n# HELP d One.\n# TYPE d gauge\nd 0.5\n"
        );
    }
}
