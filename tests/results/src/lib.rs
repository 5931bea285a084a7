//! What was measured, as one table of keys and one document. Pure: raw figures (docs/results/NAME.json, as
//! `weir-results keep` writes them) in, [`Results`] out; [`Results::markdown`] is docs/results.md.
//!
//! A part whose raw figures are not there is left out, and so are its keys.

pub mod interval;
mod parts;

pub use parts::PARTS;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Raw figures and where they are from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    pub made: Made,
    /// What the tool printed with `--json`.
    pub figures: Value,
}

/// What figures were made by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// Commit of the sources, with `+` where they were changed since.
    pub version: String,
    /// Program and arguments.
    pub command: String,
    /// Model of the processor. Empty: nobody told.
    #[serde(default)]
    pub processor: String,
    /// Somebody ended it before it was done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
}

impl Raw {
    /// Raw figures from the text of their file.
    ///
    /// # Errors
    /// What is wrong, in words: figures of which nobody says what they were made by are refused, too.
    pub fn parse(text: &str) -> Result<Raw, String> {
        let raw: Raw = serde_json::from_str(text).map_err(|e| e.to_string())?;
        match (raw.made.version.trim(), raw.made.command.trim()) {
            ("", _) => Err("`made` has no version".to_owned()),
            (_, "") => Err("`made` has no command".to_owned()),
            _ => Ok(raw),
        }
    }
}

/// One chapter of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub title: String,
    /// Markdown.
    pub text: String,
}

/// Everything that was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Figures by key.
    #[serde(flatten)]
    pub keys: Keys,
    /// By part.
    pub made: BTreeMap<String, Made>,
    #[serde(skip)]
    pub parts: Vec<Part>,
}

/// Why raw figures were refused.
#[derive(Debug)]
pub struct Refused {
    pub name: &'static str,
    pub reason: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "docs/results/{}.json: {}; `make results` writes it anew",
            self.name, self.reason
        )
    }
}

impl std::error::Error for Refused {}

/// Figures by key.
pub type Keys = BTreeMap<String, f64>;

impl Results {
    /// Gathers the parts whose raw figures are there, by the texts of their files.
    ///
    /// # Errors
    /// [`Refused`]: figures that are not what their tool writes, or of which nobody says what they were made by.
    pub fn gather(texts: &BTreeMap<String, String>) -> Result<Results, Refused> {
        let mut results = Results::default();
        for (name, title, render) in PARTS {
            let Some(text) = texts.get(*name) else {
                continue;
            };
            let refused = |reason| Refused { name, reason };
            let raw = Raw::parse(text).map_err(refused)?;
            let (text, keys) = render(&raw.figures).map_err(refused)?;
            results.keys.extend(keys);
            results.parts.push(Part {
                title: (*title).to_owned(),
                text: format!("{}\n\n{}", text.trim_end(), raw.made.line()),
            });
            results.made.insert((*name).to_owned(), raw.made);
        }
        Ok(results)
    }

    /// docs/results.md.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = "# Results\n\nMade by `make results` from the raw figures in docs/results/; below each part is what it was \
                       measured by. A value is what was measured, never its goal. *Ranges* hold with 95 % confidence.\n"
            .to_owned();
        for part in &self.parts {
            out += &format!("\n## {}\n\n{}\n", part.title, part.text.trim_end());
        }
        let rows = self
            .keys
            .iter()
            .map(|(key, value)| vec![format!("`{key}`"), parts::plain(*value)]);
        out += &format!("\n## Keys\n\n{}", parts::table(&["key", "value"], rows));
        out
    }
}

impl Made {
    /// For people.
    fn line(&self) -> String {
        let on = match self.processor.as_str() {
            "" => String::new(),
            processor => format!(" on {processor}"),
        };
        let interrupted = if self.interrupted {
            " **Interrupted: what there was by then.**"
        } else {
            ""
        };
        format!(
            "<sub>Measured by `{}` of {}{on}.{interrupted}</sub>",
            self.command, self.version
        )
    }
}
