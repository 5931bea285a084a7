//! Where a reader stands in a text, and what it says when the text is not as expected.

use std::fmt;

/// Longest piece of the input that a message repeats, in characters.
const FOUND_CHARS_MAX: usize = 40;

/// Why a text cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What would have been right here.
    pub expected: String,
    /// What is there, shortened; empty at the end of the line or text.
    pub found: String,
}

impl Error {
    #[must_use]
    pub fn new(line: usize, column: usize, expected: &str, found: &str) -> Error {
        Error {
            line,
            column,
            expected: expected.to_owned(),
            found: found.chars().take(FOUND_CHARS_MAX).collect(),
        }
    }

    /// An error at a byte of the text.
    #[must_use]
    pub fn at_byte(text: &str, byte: usize, expected: &str) -> Error {
        let mut byte = byte.min(text.len());
        while !text.is_char_boundary(byte) {
            byte -= 1;
        }
        let (before, after) = text.split_at(byte);
        let start = before.rfind('\n').map_or(0, |n| n + 1);
        let column = before.get(start..).map_or(0, |l| l.chars().count()) + 1;
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        Error::new(line, column, expected, after.lines().next().unwrap_or(""))
    }

    /// An error of the JSON parser, which counts lines and columns (in bytes) itself.
    #[must_use]
    pub fn json(error: &serde_json::Error, text: &str) -> Error {
        let said = error.to_string();
        let reason = said.split(" at line ").next().unwrap_or(&said);
        let (line, column) = (error.line().max(1), error.column().max(1));
        let there = text.lines().nth(line - 1).unwrap_or("");
        let found = there.get(column - 1..).unwrap_or("");
        Error::new(line, column, &format!("JSON ({reason})"), found)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Error {
            line,
            column,
            expected,
            found,
        } = self;
        write!(
            f,
            "line {line}, column {column}: expected {expected}, found "
        )?;
        if found.trim().is_empty() {
            f.write_str("nothing")
        } else {
            write!(f, "{found:?}")
        }
    }
}

impl std::error::Error for Error {}

/// A place in one line.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    number: usize,
    line: &'a str,
    rest: &'a str,
}

/// The lines of a text, with carriage returns and a byte order mark taken off.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = Cursor<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.lines()
        .enumerate()
        .map(|(n, line)| Cursor::new(n + 1, line))
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(number: usize, line: &'a str) -> Cursor<'a> {
        Cursor {
            number,
            line,
            rest: line,
        }
    }

    pub(crate) fn line(&self) -> &'a str {
        self.line
    }

    pub(crate) fn rest(&self) -> &'a str {
        self.rest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.trim().is_empty()
    }

    pub(crate) fn error(&self, expected: &str) -> Error {
        let done = self.line.len() - self.rest.len();
        let column = self.line.get(..done).map_or(0, |l| l.chars().count()) + 1;
        Error::new(self.number, column, expected, self.rest)
    }

    pub(crate) fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Takes the literal if it is next.
    pub(crate) fn take(&mut self, literal: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(literal) else {
            return false;
        };
        self.rest = rest;
        true
    }

    pub(crate) fn expect(&mut self, literal: &str, what: &str) -> Result<(), Error> {
        if self.take(literal) {
            return Ok(());
        }
        Err(self.error(what))
    }

    /// Takes all up to the stop, which must come, and the stop itself.
    pub(crate) fn until(&mut self, stop: &str, what: &str) -> Result<&'a str, Error> {
        let Some((taken, rest)) = self.rest.split_once(stop) else {
            return Err(self.error(what));
        };
        self.rest = rest;
        Ok(taken)
    }

    /// Takes all up to the *last* occurrence of the stop: what is quoted may hold quotes.
    pub(crate) fn until_last(&mut self, stop: &str, what: &str) -> Result<&'a str, Error> {
        let Some((taken, rest)) = self.rest.rsplit_once(stop) else {
            return Err(self.error(what));
        };
        self.rest = rest;
        Ok(taken)
    }

    /// Takes what is not white space; nothing is an error.
    pub(crate) fn word(&mut self, what: &str) -> Result<&'a str, Error> {
        self.skip_spaces();
        let end = self
            .rest
            .find(char::is_whitespace)
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if word.is_empty() {
            return Err(self.error(what));
        }
        self.rest = rest;
        Ok(word)
    }

    /// Takes a decimal number that the type holds.
    pub(crate) fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, Error> {
        self.skip_spaces();
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        let number = digits.parse().map_err(|_| self.error(what))?;
        self.rest = rest;
        Ok(number)
    }

    /// Takes a word that holds a GUID.
    pub(crate) fn guid(&mut self, stop: &str) -> Result<crate::guid::Guid, Error> {
        let what = "a GUID of up to 16 hexadecimal digits";
        let here = self.clone();
        let text = if stop.is_empty() {
            self.word(what)?
        } else {
            self.until(stop, what)?
        };
        crate::guid::Guid::parse(text).ok_or_else(|| here.error(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_counts_characters_and_shortens_what_is_there() {
        let mut cursor = Cursor::new(7, "äö x");
        assert!(cursor.take("äö "));
        assert_eq!(
            cursor.number::<u8>("a port").unwrap_err().to_string(),
            "line 7, column 4: expected a port, found \"x\""
        );
        let long = "y".repeat(100);
        let error = Cursor::new(1, &long).error("z");
        assert_eq!(error.found.len(), FOUND_CHARS_MAX);
    }

    #[test]
    fn a_byte_is_a_line_and_a_column() {
        let error = Error::at_byte("ab\ncdé!", 8, "an end");
        assert_eq!((error.line, error.column), (2, 5), "{error}");
        let error = Error::at_byte("ab\ncdé!", 6, "inside of a character");
        assert_eq!((error.line, error.column), (2, 3), "{error}");
    }
}
