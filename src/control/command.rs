// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a line to a command with validated arguments.

use std::fmt;

use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::endpoints::EndpointSpec;
use crate::host::{PageRequest, Requester};
use crate::notation::from_hex;
use crate::spec::{DomainId, EndpointId, EventFlags, Iova, Pasid};

/// The longest line, and the most data of an access, in bytes.
pub const MAX_LINE: usize = 1 << 20;
/// The longest `id`, as it is written. It is kept while its command waits.
const MAX_ID: usize = 1024;

/// The `class` of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ErrorClass {
    /// There is no such command.
    CommandNotFound,
    /// The line or an argument is not what it should be.
    InvalidArgument,
    /// The access has no translation.
    TranslationFault,
    /// The translation does not permit the access.
    PermissionFault,
    /// A page request of the access was not answered with success.
    PageRequestFailed,
    /// The host or the endpoint cannot do it.
    Unsupported,
    /// Memory, descriptors or room are short at the moment: the same can succeed later.
    TryAgain,
    /// Something else went wrong.
    Internal,
}

/// An error as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CommandError {
    /// For programs.
    pub class: ErrorClass,
    /// For people.
    pub desc: String,
}

impl CommandError {
    /// An error of a class.
    pub fn new(class: ErrorClass, desc: impl fmt::Display) -> Self {
        Self {
            class,
            desc: desc.to_string(),
        }
    }

    /// What the client sent is not what it should be.
    pub fn invalid(desc: impl fmt::Display) -> Self {
        Self::new(ErrorClass::InvalidArgument, desc)
    }
}

/// A command with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `status`
    Status,
    /// `counters`
    Counters {
        /// As text for Prometheus.
        prometheus: bool,
    },
    /// `waiting`
    Waiting,
    /// `mappings`
    Mappings {
        /// Of this domain.
        domain: DomainId,
    },
    /// `endpoint`
    Endpoint {
        /// This one.
        endpoint: EndpointId,
    },
    /// `endpoint-add`
    EndpointAdd(EndpointAdd),
    /// `endpoint-remove`
    EndpointRemove {
        /// This one.
        endpoint: EndpointId,
    },
    /// `reattach`
    Reattach,
    /// `dma-read`
    DmaRead {
        /// The source of the access.
        requester: Requester,
        /// From where.
        iova: Iova,
        /// How much; at most [`MAX_LINE`].
        length: usize,
    },
    /// `dma-write`
    DmaWrite {
        /// The source of the access.
        requester: Requester,
        /// Where to.
        iova: Iova,
        /// What.
        data: Vec<u8>,
    },
    /// `translate`
    Translate {
        /// The source of the access.
        requester: Requester,
        /// The address.
        iova: Iova,
    },
    /// `page-request`
    PageRequest {
        /// The source of the request.
        requester: Requester,
        /// What for; at least one.
        pages: Vec<PageRequest>,
    },
}

impl Command {
    /// How many descriptors may come with it.
    pub fn descriptors(&self) -> usize {
        usize::from(matches!(self, Self::EndpointAdd(_)))
    }

    /// Bytes that the command holds on to while it waits; `None` when it never waits.
    pub fn waiting_cost(&self) -> Option<usize> {
        match self {
            Self::DmaRead { length, .. } => Some(*length),
            Self::DmaWrite { data, .. } => Some(data.len()),
            Self::PageRequest { pages, .. } => Some(size_of_val(pages.as_slice())),
            Self::Reattach => Some(0),
            _ => None,
        }
    }
}

/// `endpoint-add`: the keys of `--endpoint`, each an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointAdd {
    /// Its ID.
    pub endpoint: EndpointId,
    /// Its other keys.
    pairs: Vec<(String, String)>,
}

impl EndpointAdd {
    /// The endpoint. `fd` is the number of a descriptor that came with the command: its VFIO device.
    ///
    /// # Errors
    /// The arguments describe no endpoint: class `InvalidArgument`.
    pub fn spec(&self, fd: Option<i32>) -> Result<EndpointSpec, CommandError> {
        let fd = fd.map(|fd| fd.to_string());
        let with_line = fd.iter().map(|fd| ("vfio-fd", fd.as_str()));
        let pairs = self.pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        EndpointSpec::from_pairs(self.endpoint, pairs.chain(with_line))
            .map_err(CommandError::invalid)
    }
}

/// A line: the command, or what is wrong with it, and the `id` for the answer.
#[derive(Debug)]
pub struct Line {
    /// Comes back in the answer.
    pub id: Option<Value>,
    /// What to do.
    pub command: Result<Command, CommandError>,
}

/// Takes a line apart. Any bytes whatever are an answerable line.
pub fn parse(line: &[u8]) -> Line {
    let mut object = match serde_json::from_slice(line) {
        Ok(Value::Object(object)) => object,
        Ok(_) => {
            return Line {
                id: None,
                command: Err(CommandError::invalid("a command is a JSON object")),
            };
        }
        Err(error) => {
            let desc = format!("not JSON: {error}");
            return Line {
                id: None,
                command: Err(CommandError::invalid(desc)),
            };
        }
    };
    let id = object.remove("id");
    if let Some(value) = &id
        && value.to_string().len() > MAX_ID
    {
        let desc = format!("'id' is longer than {MAX_ID} bytes");
        return Line {
            id: None,
            command: Err(CommandError::invalid(desc)),
        };
    }
    Line {
        id,
        command: command(object),
    }
}

fn command(mut object: Map<String, Value>) -> Result<Command, CommandError> {
    let name = match object.remove("execute") {
        Some(Value::String(name)) => name,
        _ => {
            return Err(CommandError::invalid(
                "'execute' is missing: it is the name of the command",
            ));
        }
    };
    let arguments = object
        .remove("arguments")
        .unwrap_or_else(|| Value::Object(Map::new()));
    if !arguments.is_object() {
        return Err(CommandError::invalid("'arguments' is not an object"));
    }
    if let Some(key) = object.keys().next() {
        let desc = format!("unexpected '{key}': a command has execute, arguments and id");
        return Err(CommandError::invalid(desc));
    }
    with_arguments(&name, arguments)
}

fn with_arguments(name: &str, arguments: Value) -> Result<Command, CommandError> {
    Ok(match name {
        "status" => {
            take::<Nothing>(name, arguments)?;
            Command::Status
        }
        "counters" => {
            let Counters { format } = take(name, arguments)?;
            Command::Counters {
                prometheus: format == Some(Format::Prometheus),
            }
        }
        "waiting" => {
            take::<Nothing>(name, arguments)?;
            Command::Waiting
        }
        "mappings" => {
            let Mappings { domain } = take(name, arguments)?;
            Command::Mappings {
                domain: DomainId(domain),
            }
        }
        "endpoint" => {
            let OneEndpoint { endpoint } = take(name, arguments)?;
            Command::Endpoint {
                endpoint: endpoint.0,
            }
        }
        "endpoint-add" => Command::EndpointAdd(endpoint_add(arguments)?),
        "endpoint-remove" => {
            let OneEndpoint { endpoint } = take(name, arguments)?;
            Command::EndpointRemove {
                endpoint: endpoint.0,
            }
        }
        "reattach" => {
            take::<Nothing>(name, arguments)?;
            Command::Reattach
        }
        "dma-read" => {
            let read: DmaRead = take(name, arguments)?;
            let length = usize::try_from(read.length).unwrap_or(usize::MAX);
            if length > MAX_LINE {
                let desc = format!("'length' {length} is above the limit of {MAX_LINE} bytes");
                return Err(CommandError::invalid(desc));
            }
            Command::DmaRead {
                requester: requester(read.endpoint, read.pasid),
                iova: Iova(read.iova),
                length,
            }
        }
        "dma-write" => {
            let write: DmaWrite = take(name, arguments)?;
            Command::DmaWrite {
                requester: requester(write.endpoint, write.pasid),
                iova: Iova(write.iova),
                data: from_hex(&write.data).ok_or_else(|| {
                    CommandError::invalid("'data' is not hexadecimal with two digits for each byte")
                })?,
            }
        }
        "translate" => {
            let Translate {
                endpoint,
                iova,
                pasid,
            } = take(name, arguments)?;
            Command::Translate {
                requester: requester(endpoint, pasid),
                iova: Iova(iova),
            }
        }
        "page-request" => {
            let request: PageRequests = take(name, arguments)?;
            if request.pages.is_empty() {
                return Err(CommandError::invalid(
                    "'pages' is empty: a group has a page",
                ));
            }
            Command::PageRequest {
                requester: requester(request.endpoint, request.pasid),
                pages: request
                    .pages
                    .into_iter()
                    .map(page)
                    .collect::<Result<_, _>>()?,
            }
        }
        _ => {
            let desc = format!("there is no command '{name}'");
            return Err(CommandError::new(ErrorClass::CommandNotFound, desc));
        }
    })
}

fn take<T: DeserializeOwned>(name: &str, arguments: Value) -> Result<T, CommandError> {
    serde_json::from_value(arguments)
        .map_err(|error| CommandError::invalid(format!("{name}: {error}")))
}

fn requester(endpoint: Endpoint, pasid: Option<u32>) -> Requester {
    Requester {
        endpoint: endpoint.0,
        pasid: pasid.map(Pasid),
    }
}

fn endpoint_add(arguments: Value) -> Result<EndpointAdd, CommandError> {
    let mut arguments: Map<String, Value> = take("endpoint-add", arguments)?;
    let endpoint = arguments
        .remove("endpoint")
        .ok_or_else(|| CommandError::invalid("endpoint-add: 'endpoint' is missing"))?;
    let Endpoint(endpoint) = take("endpoint-add", endpoint)?;
    let mut pairs = Vec::new();
    for (key, value) in arguments {
        let value = match value {
            Value::String(text) => text,
            Value::Number(n) => n.to_string(),
            _ => {
                let desc = format!("endpoint-add: '{key}' is neither a string nor a number");
                return Err(CommandError::invalid(desc));
            }
        };
        if key == "vfio-fd" {
            let desc =
                "endpoint-add: a descriptor comes with the line (SCM_RIGHTS), not as a number";
            return Err(CommandError::invalid(desc));
        }
        pairs.push((key, value));
    }
    Ok(EndpointAdd { endpoint, pairs })
}

fn page(page: Page) -> Result<PageRequest, CommandError> {
    let mut access = EventFlags::empty();
    for letter in page.access.chars() {
        let kind = match letter {
            'r' => EventFlags::READ,
            'w' => EventFlags::WRITE,
            'x' => EventFlags::EXEC,
            'p' => EventFlags::PRIVILEGED,
            _ => EventFlags::empty(),
        };
        if kind.is_empty() || access.contains(kind) {
            access = EventFlags::empty();
            break;
        }
        access |= kind;
    }
    if access.is_empty() {
        return Err(CommandError::invalid(
            "'access' has one or more of the letters r, w, x, p, each once",
        ));
    }
    Ok(PageRequest {
        address: Iova(page.iova),
        access,
        length: 0,
    })
}

/// An endpoint as an argument: a number, or a string as on the command line.
struct Endpoint(EndpointId);

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EndpointVisitor;
        impl Visitor<'_> for EndpointVisitor {
            type Value = Endpoint;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an endpoint: a number of 32 bits, or a string such as \"00:05.0\"")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Endpoint, E> {
                u32::try_from(number)
                    .map(|id| Endpoint(EndpointId(id)))
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Endpoint, E> {
                text.parse().map(Endpoint).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(EndpointVisitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Counters {
    format: Option<Format>,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Format {
    Json,
    Prometheus,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mappings {
    domain: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneEndpoint {
    endpoint: Endpoint,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DmaRead {
    endpoint: Endpoint,
    iova: u64,
    length: u64,
    pasid: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DmaWrite {
    endpoint: Endpoint,
    iova: u64,
    data: String,
    pasid: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Translate {
    endpoint: Endpoint,
    iova: u64,
    pasid: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageRequests {
    endpoint: Endpoint,
    pages: Vec<Page>,
    pasid: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    iova: u64,
    access: String,
}

#[cfg(test)]
mod tests;
