// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Findings, and how they are printed.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

/// What a finding means for serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Yes,
    /// Serving works, with less.
    Limited,
    /// Serving does not work.
    Missing,
    /// It cannot be found out like this.
    Unknown,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Limited => "limited",
            Self::Missing => "MISSING",
            Self::Unknown => "unknown",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// What was found, for programs.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub value: Value,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self {
            check,
            verdict,
            found: found.into(),
            advice: None,
            value: Value::Null,
        }
    }

    pub fn yes(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Verdict::Yes, found)
    }

    pub fn limited(
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Limited, found).advice(advice)
    }

    pub fn missing(
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Missing, found).advice(advice)
    }

    pub fn unknown(
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Unknown, found).advice(advice)
    }

    fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    pub fn value(mut self, value: impl Into<Value>) -> Self {
        self.value = value.into();
        self
    }
}

/// The findings about one subject.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Section {
    pub subject: String,
    pub findings: Vec<Finding>,
}

/// Everything that was found.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub sections: Vec<Section>,
}

impl Report {
    /// Whether nothing that serving needs is missing.
    pub fn is_ready(&self) -> bool {
        let mut findings = self.sections.iter().flat_map(|section| &section.findings);
        findings.all(|finding| finding.verdict != Verdict::Missing)
    }

    pub fn json(&self) -> Value {
        json!({ "ready": self.is_ready(), "sections": self.sections })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for section in &self.sections {
            writeln!(f, "{}", section.subject)?;
            for finding in &section.findings {
                let (word, check) = (finding.verdict.word(), finding.check);
                writeln!(f, "  {word:<8} {check}: {}", finding.found)?;
                if let Some(advice) = &finding.advice {
                    writeln!(f, "           -> {advice}")?;
                }
            }
        }
        f.write_str(match self.is_ready() {
            true => "ready: nothing that serving devices needs is missing\n",
            false => "not ready: what is MISSING above is needed to serve devices\n",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(finding: Finding) -> Report {
        let subject = "machine".to_owned();
        let findings = vec![Finding::yes("kernel", "Linux"), finding];
        Report {
            sections: vec![Section { subject, findings }],
        }
    }

    #[test]
    fn only_what_is_missing_stands_in_the_way() {
        for (finding, ready) in [
            (Finding::yes("a", "b"), true),
            (Finding::limited("a", "b", "c"), true),
            (Finding::unknown("a", "b", "c"), true),
            (Finding::missing("a", "b", "c"), false),
        ] {
            assert_eq!(report(finding).is_ready(), ready);
        }
    }

    #[test]
    fn a_line_each_and_what_to_do_below() {
        let report = report(Finding::missing("iommufd", "none", "load it").value(3));
        assert_eq!(
            report.to_string(),
            "machine\n  yes      kernel: Linux\n  MISSING  iommufd: none\n           -> load it\n\
             not ready: what is MISSING above is needed to serve devices\n"
        );
        let expected = json!({"ready": false, "sections": [{"subject": "machine", "findings": [
            {"check": "kernel", "verdict": "yes", "found": "Linux"},
            {"check": "iommufd", "verdict": "missing", "found": "none", "advice": "load it", "value": 3},
        ]}]});
        assert_eq!(report.json(), expected);
    }
}
