// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `vhost-device-iommu ctl`: the client of the control socket.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::cli::args::CtlArgs;
use crate::cli::indent::Indenter;
use crate::cli::picture::{self, Listed};
use crate::cli::top;
use crate::notation::number;
use crate::os::inherited;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The command line makes no command.
    #[error("{0}; see 'vhost-device-iommu ctl --help'")]
    Usage(String),
    /// No process listens there, or this one may not connect.
    #[error("cannot connect to the control socket {0}: {1}")]
    Connect(PathBuf, io::Error),
    /// The connection broke.
    #[error("the control socket {0} gave no answer: {1}")]
    Broken(PathBuf, io::Error),
    /// The answer is not one.
    #[error("the answer is not understood: {0}")]
    Answer(String),
    /// The command was refused.
    #[error("{class}: {desc}")]
    Refused {
        /// The class of the error.
        class: String,
        /// Its text.
        desc: String,
    },
    /// The picture cannot be written.
    #[error("cannot write {0}: {1}")]
    Picture(PathBuf, io::Error),
    /// The answer cannot be printed.
    #[error("cannot print the answer: {0}")]
    Print(io::Error),
}

/// How an answer that is a list begins.
const LIST: &[u8] = b"{\"return\":[";

/// Sends the command, prints the answer.
///
/// # Errors
/// There is no command, no connection, or no answer, or the answer is an error.
pub fn run(args: &CtlArgs) -> Result<(), CtlError> {
    if args.command == ["top"] {
        return top::run(&args.path);
    }
    let (words, svg) = without_svg(&args.command)?;
    let (line, file) = line(&words)?;
    let mut stream = UnixStream::connect(&args.path)
        .map_err(|error| CtlError::Connect(args.path.clone(), error))?;
    let broken = |error| CtlError::Broken(args.path.clone(), error);
    send(&mut stream, &line, file.as_ref()).map_err(broken)?;
    let mut answer = BufReader::new(stream);
    if let Some(path) = svg {
        return draw(&words, answer, &path);
    }
    let mut begin = [0; LIST.len()];
    answer.read_exact(&mut begin).map_err(broken)?;
    if begin == LIST {
        // It may be as long as a guest has mappings.
        return print_list(&mut answer).map_err(CtlError::Print);
    }
    let mut bytes = begin.to_vec();
    answer.read_until(b'\n', &mut bytes).map_err(broken)?;
    let answer = serde_json::from_slice(&bytes);
    print_answer(answer.map_err(|error| CtlError::Answer(error.to_string()))?)
}

fn send(stream: &mut UnixStream, line: &str, file: Option<&File>) -> io::Result<()> {
    let mut rest = line.as_bytes();
    if let Some(file) = file {
        let sent = stream.send_with_fd(rest, file.as_raw_fd())?;
        rest = rest.get(sent..).unwrap_or_default();
    }
    stream.write_all(rest)
}

fn print_answer(answer: Value) -> Result<(), CtlError> {
    print(&returned(answer)?).map_err(CtlError::Print)
}

/// What an answer returns.
pub(super) fn returned(mut answer: Value) -> Result<Value, CtlError> {
    if let Some(error) = answer.get("error") {
        let text = |key| {
            let text = error.get(key).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        return Err(CtlError::Refused {
            class: text("class"),
            desc: text("desc"),
        });
    }
    match answer.get_mut("return").map(Value::take) {
        Some(value) => Ok(value),
        None => Err(CtlError::Answer(answer.to_string())),
    }
}

/// What `mappings` returns.
#[derive(Deserialize)]
#[serde(untagged)]
enum Mappings {
    /// The mappings.
    Listed {
        /// Ascending.
        r#return: Vec<Listed>,
    },
    /// Anything else.
    Other(Value),
}

/// Draws the mappings that an answer lists.
fn draw(words: &[String], mut answer: impl BufRead, path: &Path) -> Result<(), CtlError> {
    let mut bytes = Vec::new();
    let unread = |error: io::Error| CtlError::Answer(error.to_string());
    answer.read_until(b'\n', &mut bytes).map_err(unread)?;
    let found = serde_json::from_slice(&bytes);
    let mappings = match found.map_err(|error| CtlError::Answer(error.to_string()))? {
        Mappings::Listed { r#return } => r#return,
        Mappings::Other(answer) => {
            return Err(match returned(answer) {
                Ok(other) => CtlError::Answer(other.to_string()),
                Err(error) => error,
            });
        }
    };
    let svg = picture::draw(&words[1..].join(" "), &mappings);
    fs::write(path, svg).map_err(|error| CtlError::Picture(path.to_owned(), error))
}

/// The words without `--svg FILE`, which only `mappings` has, and the file.
fn without_svg(words: &[String]) -> Result<(Vec<String>, Option<PathBuf>), CtlError> {
    let usage = |text: &str| Err(CtlError::Usage(text.to_owned()));
    let Some(place) = words.iter().position(|word| word == "--svg") else {
        return Ok((words.to_vec(), None));
    };
    let Some(path) = words.get(place + 1) else {
        return usage("'--svg' needs the name of a file");
    };
    if words[0] != "mappings" {
        return usage("'--svg' is for 'mappings'");
    }
    let rest = [&words[..place], &words[place + 2..]].concat();
    Ok((rest, Some(PathBuf::from(path))))
}

fn print(value: &Value) -> io::Result<()> {
    let mut output = io::stdout().lock();
    match value.get("text").and_then(Value::as_str) {
        Some(text) => output.write_all(text.as_bytes())?,
        None => writeln!(output, "{value:#}")?,
    }
    output.flush()
}

/// Prints a list, whose opening bracket is read already, as it comes.
fn print_list(answer: &mut impl BufRead) -> io::Result<()> {
    let mut output = BufWriter::new(io::stdout().lock());
    let mut indenter = Indenter::default();
    indenter.write(b'[', &mut output)?;
    for byte in answer.bytes() {
        if indenter.write(byte?, &mut output)? {
            writeln!(output)?;
            return output.flush();
        }
    }
    Err(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the answer is cut short",
    ))
}

/// The line for the words of the command line, and the descriptor that goes with it.
fn line(words: &[String]) -> Result<(String, Option<File>), CtlError> {
    let usage = |text: String| CtlError::Usage(text);
    let (name, arguments) = words
        .split_first()
        .ok_or_else(|| usage("a command is missing".to_owned()))?;
    if name.trim_start().starts_with('{') {
        let object: Value = serde_json::from_str(&words.join(" "))
            .map_err(|error| usage(format!("the command is not JSON: {error}")))?;
        return Ok((format!("{object}\n"), None));
    }
    let mut object = Map::new();
    let mut file = None;
    for argument in arguments {
        let (key, value) = argument
            .split_once('=')
            .ok_or_else(|| usage(format!("'{argument}' is not key=value")))?;
        if key == "vfio-fd" {
            file = Some(inherited(value).map_err(usage)?);
        } else if object
            .insert(key.to_owned(), json_value(key, value).map_err(usage)?)
            .is_some()
        {
            return Err(usage(format!("'{key}' is given twice")));
        }
    }
    let command = json!({"execute": name, "arguments": object});
    Ok((format!("{command}\n"), file))
}

fn inherited(number: &str) -> Result<File, String> {
    number
        .parse()
        .map_err(|_| format!("'vfio-fd={number}' is not a number"))
        .and_then(|fd| {
            inherited::take_fd(fd).map_err(|error| format!("'vfio-fd={number}': {error}"))
        })
        .map(File::from)
}

fn json_value(key: &str, value: &str) -> Result<Value, String> {
    match key {
        "iova" | "length" | "pasid" | "domain" | "dev-id" | "mock" => number(value)
            .map(Value::from)
            .ok_or_else(|| format!("'{key}={value}' is not a number")),
        "pages" => pages(value),
        _ => Ok(Value::from(value)),
    }
}

/// `IOVA:ACCESS[,IOVA:ACCESS]...`
fn pages(text: &str) -> Result<Value, String> {
    text.split(',')
        .map(|page| {
            let (iova, access) = page.split_once(':')?;
            Some(json!({"iova": number(iova)?, "access": access}))
        })
        .collect::<Option<Vec<_>>>()
        .map(Value::from)
        .ok_or_else(|| format!("'pages={text}' is not IOVA:ACCESS[,IOVA:ACCESS]..."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn object(text: &str) -> Value {
        let (line, _) = line(&words(text)).expect(text);
        serde_json::from_str(&line).expect("JSON")
    }

    #[test]
    fn words_become_a_command() {
        assert_eq!(
            object("dma-read endpoint=00:05.0 iova=0x1000 length=16 pasid=3"),
            json!({"execute": "dma-read", "arguments": {
                "endpoint": "00:05.0", "iova": 4096, "length": 16, "pasid": 3,
            }})
        );
        // Digits are not always a number.
        assert_eq!(
            object("dma-write endpoint=40 iova=0 data=11"),
            json!({"execute": "dma-write", "arguments": {
                "endpoint": "40", "iova": 0, "data": "11",
            }})
        );
        assert_eq!(
            object("page-request endpoint=1 pages=0x1000:r,8192:rw"),
            json!({"execute": "page-request", "arguments": {
                "endpoint": "1",
                "pages": [{"iova": 4096, "access": "r"}, {"iova": 8192, "access": "rw"}],
            }})
        );
        assert_eq!(
            object("status"),
            json!({"execute": "status", "arguments": {}})
        );
    }

    #[test]
    fn a_picture_is_asked_for_with_the_command_and_a_file() {
        let (rest, svg) = without_svg(&words("mappings domain=1 --svg a.svg")).expect("words");
        assert_eq!(rest, words("mappings domain=1"));
        assert_eq!(svg, Some(PathBuf::from("a.svg")));
        let (rest, _) = without_svg(&words("mappings --svg a.svg domain=1")).expect("words");
        assert_eq!(rest, words("mappings domain=1"));
        for text in [
            "mappings domain=1 --svg",
            "status --svg a.svg",
            "--svg mappings",
        ] {
            assert!(without_svg(&words(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn json_goes_as_it_is() {
        assert_eq!(
            object(r#"{"execute":"status", "id":1}"#),
            json!({"execute": "status", "id": 1})
        );
    }

    #[test]
    fn words_that_make_no_command_are_refused() {
        for text in [
            "dma-read iova",
            "dma-read iova=x",
            "dma-read iova=-1",
            "mappings domain=1 domain=2",
            "page-request pages=0x1000",
            "page-request pages=",
            "endpoint-add vfio-fd=x",
            "endpoint-add vfio-fd=1000000",
            "{",
        ] {
            assert!(
                matches!(line(&words(text)), Err(CtlError::Usage(_))),
                "{text}"
            );
        }
    }
}
