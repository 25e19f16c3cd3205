// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Indents JSON text while it comes, however long it is.
#![forbid(unsafe_code)]

use std::io::{self, Write};

/// Where in the text it is.
#[derive(Default)]
pub struct Indenter {
    depth: usize,
    /// Inside a string: whether behind a backslash.
    string: Option<bool>,
    /// Behind an opening bracket: nothing is in it so far.
    opened: bool,
}

impl Indenter {
    /// Writes the next byte of a list or an object. Whether it is the last one.
    ///
    /// # Errors
    /// The output fails.
    pub fn write(&mut self, byte: u8, output: &mut impl Write) -> io::Result<bool> {
        if let Some(escaped) = self.string {
            self.string = match byte {
                b'"' if !escaped => None,
                b'\\' => Some(!escaped),
                _ => Some(false),
            };
            output.write_all(&[byte])?;
            return Ok(false);
        }
        match byte {
            _ if byte.is_ascii_whitespace() => return Ok(false),
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if !std::mem::take(&mut self.opened) {
                    self.new_line(output)?;
                }
                output.write_all(&[byte])?;
                return Ok(self.depth == 0);
            }
            b',' => {
                output.write_all(b",")?;
                self.new_line(output)?;
                return Ok(false);
            }
            b':' => output.write_all(b": ")?,
            _ => {
                if std::mem::take(&mut self.opened) {
                    self.new_line(output)?;
                }
                output.write_all(&[byte])?;
            }
        }
        match byte {
            b'"' => self.string = Some(false),
            b'{' | b'[' => {
                self.depth += 1;
                self.opened = true;
            }
            _ => {}
        }
        Ok(false)
    }

    fn new_line(&self, output: &mut impl Write) -> io::Result<()> {
        writeln!(output)?;
        write!(output, "{:1$}", "", 2 * self.depth)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn it_writes_as_the_library_does() {
        for value in [
            json!([]),
            json!([{}, [], "", 1, null, true]),
            json!([{"flags": "rw", "iova": 4096}, {"text": "a \"b\" \\ {[,:]}", "list": [1, 2]}]),
        ] {
            let mut output = Vec::new();
            let mut indenter = Indenter::default();
            let text = value.to_string();
            let mut ends = text
                .bytes()
                .map(|byte| indenter.write(byte, &mut output).expect("memory"));
            assert!(ends.by_ref().last().expect("a text"), "{text}");
            drop(ends);
            let output = String::from_utf8(output).expect("text");
            assert_eq!(output, format!("{value:#}"));
            assert_eq!(output.parse::<Value>().expect("JSON"), value);
        }
    }
}
