//! XML as a stream of elements with their places.

use crate::text::Error;
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// Elements within each other at most; real files have fewer than 16.
const DEPTH_MAX: usize = 64;

/// What comes next in the text.
pub(crate) enum Step<'a> {
    /// An element begins. If it is empty, its end follows as for others.
    Begin(Element<'a>),
    /// The innermost element ends.
    End,
    Text(String),
}

/// An element's beginning.
pub(crate) struct Element<'a> {
    start: BytesStart<'a>,
    pub(crate) name: String,
}

impl Element<'_> {
    /// An attribute; `None` if it is not there or cannot be read.
    pub(crate) fn attribute(&self, name: &str) -> Option<String> {
        let mut attributes = self.start.attributes();
        // Without this each attribute is compared with all before it.
        attributes.with_checks(false);
        let found = attributes.flatten().find(|a| a.key.as_ref() == name)?;
        quick_xml::escape::unescape(&found.value)
            .ok()
            .map(String::from)
    }
}

/// Calls `step` for all that the text holds.
pub(crate) fn walk<'a>(
    text: &'a str,
    mut step: impl FnMut(Step<'a>, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut reader = Reader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    let mut depth = 0_usize;
    loop {
        let at = usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
        let event = reader
            .read_event()
            .map_err(|e| Error::at_byte(text, at, &format!("well-formed XML ({e})")))?;
        match event {
            Event::Start(start) => {
                depth += 1;
                if depth > DEPTH_MAX {
                    let what = format!("at most {DEPTH_MAX} elements within each other");
                    return Err(Error::at_byte(text, at, &what));
                }
                let name = start.name().as_ref().to_owned();
                step(Step::Begin(Element { start, name }), at)?;
            }
            Event::End(_) => {
                depth = depth.saturating_sub(1);
                step(Step::End, at)?;
            }
            Event::Text(piece) => {
                step(Step::Text(piece.to_string()), at)?;
            }
            Event::Eof if depth > 0 => {
                return Err(Error::at_byte(text, text.len(), "the end of an element"));
            }
            Event::Eof => return Ok(()),
            Event::Empty(_)
            | Event::CData(_)
            | Event::Comment(_)
            | Event::Decl(_)
            | Event::PI(_)
            | Event::DocType(_)
            | Event::GeneralRef(_) => {}
        }
    }
}
