// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the commands do.

use std::future::{Future, ready};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::control::command::{Command, CommandError, EndpointAdd, ErrorClass};
use crate::control::lists::{Mappings, Status};
use crate::control::metrics::{self, Label};
use crate::control::output::{Answer, Reply};
use crate::control::route;
use crate::device::SetupError;
use crate::endpoints::{EndpointError, Endpoints};
use crate::host::iommufd;
use crate::host::soft::{AccessError, Denied, Port, Transfer};
use crate::host::{HostError, PageRequest, Requester};
use crate::notation::to_hex;
use crate::soft_endpoint::ServeError;
use crate::spec::{DomainId, EndpointId, Iova, PageResponseCode, Pasid};
use crate::transport::{Reattach, ReattachError, Reattached};

/// What commands work on.
#[derive(Clone)]
pub struct Context {
    /// The endpoints, and the device that has them.
    pub endpoints: Arc<Endpoints>,
    /// The front-end, to be reattached.
    pub reattach: Arc<Reattach>,
    /// What every sample for Prometheus is labelled with.
    pub labels: Arc<[Label]>,
}

/// A command being carried out: ready at once, unless it waits for the guest.
pub type Running = Pin<Box<dyn Future<Output = Answer> + Send>>;

impl Context {
    /// Begins a command. `fd` is the descriptor that came with it.
    pub fn begin(&self, command: Command, fd: Option<OwnedFd>) -> Running {
        let answer = match command {
            Command::Status => {
                let status = Status::new(self.endpoints.device());
                Ok(Reply::Parts(Box::new(status)))
            }
            Command::Counters { prometheus: false } => Reply::of(&self.counters()),
            Command::Counters { prometheus: true } => {
                let device = self.endpoints.device();
                let text = metrics::text(device, &self.labels, Instant::now());
                Reply::of(&json!({"text": text}))
            }
            Command::Waiting => Reply::of(&self.endpoints.device().waiting(Instant::now())),
            Command::Mappings { domain } => self.mappings(domain),
            Command::Endpoint { endpoint } => self.endpoint(endpoint),
            Command::EndpointAdd(add) => self.endpoint_add(&add, fd),
            Command::EndpointRemove { endpoint } => self.endpoint_remove(endpoint),
            Command::Reattach => return Box::pin(reattach(self.reattach.ask())),
            Command::DmaRead {
                requester,
                iova,
                length,
            } => match self.port(requester.endpoint) {
                Ok(port) => return Box::pin(dma_read(port, requester.pasid, iova, length)),
                Err(error) => Err(error),
            },
            Command::DmaWrite {
                requester,
                iova,
                data,
            } => match self.port(requester.endpoint) {
                Ok(port) => return Box::pin(dma_write(port, requester.pasid, iova, data)),
                Err(error) => Err(error),
            },
            Command::Translate { requester, iova } => self.translate(requester, iova),
            Command::PageRequest { requester, pages } => match self.port(requester.endpoint) {
                Ok(port) => return Box::pin(page_request(port, requester.pasid, pages)),
                Err(error) => Err(error),
            },
        };
        Box::pin(ready(answer))
    }

    fn port(&self, endpoint: EndpointId) -> Result<Arc<Port>, CommandError> {
        let host = self.endpoints.soft_host().ok_or_else(|| {
            CommandError::new(
                ErrorClass::Unsupported,
                "the endpoints of this process are devices: they make their accesses themselves",
            )
        })?;
        host.shared_port(endpoint)
            .map_err(|error| host_error(&error))
    }

    fn translate(&self, requester: Requester, iova: Iova) -> Answer {
        let route = self
            .port(requester.endpoint)?
            .route(requester.pasid, iova)
            .map_err(|denied| CommandError::new(denied_class(denied), denied))?;
        Reply::of(&route::describe(&route, iova))
    }

    fn counters(&self) -> Value {
        let counters = self.endpoints.device().counters().each();
        counters
            .into_iter()
            .map(|(name, _, value)| (name.to_owned(), Value::from(value)))
            .collect::<Map<_, _>>()
            .into()
    }

    fn mappings(&self, domain: DomainId) -> Answer {
        match Mappings::new(self.endpoints.device(), domain) {
            Some(mappings) => Ok(Reply::Parts(Box::new(mappings))),
            None => Err(CommandError::invalid(format!(
                "there is no domain {domain}"
            ))),
        }
    }

    fn endpoint(&self, endpoint: EndpointId) -> Answer {
        self.endpoints
            .describe_function(endpoint)
            .map_err(|error| endpoint_error(&error))
            .and_then(|description| Reply::of(&description))
    }

    fn endpoint_add(&self, add: &EndpointAdd, fd: Option<OwnedFd>) -> Answer {
        let spec = add.spec(fd.as_ref().map(AsRawFd::as_raw_fd))?;
        self.endpoints
            .add(&spec, fd)
            .map_err(|error| endpoint_error(&error))?;
        Reply::of(&json!({}))
    }

    fn endpoint_remove(&self, endpoint: EndpointId) -> Answer {
        self.endpoints
            .remove(endpoint)
            .map_err(|error| endpoint_error(&error))?;
        Reply::of(&json!({}))
    }
}

async fn reattach(asked: impl Future<Output = Result<Reattached, ReattachError>>) -> Answer {
    let reattached = asked.await.map_err(|error| {
        // The next front-end can be reattached, and so can this one when there is room again.
        CommandError::new(ErrorClass::TryAgain, error)
    })?;
    Reply::of(&json!({
        "paused_us": reattached.paused.as_micros() as u64,
        "messages": reattached.messages,
    }))
}

async fn dma_read(port: Arc<Port>, pasid: Option<Pasid>, iova: Iova, length: usize) -> Answer {
    let mut data = vec![0; length];
    port.access(pasid, iova, Transfer::Read(&mut data))
        .await
        .map_err(|error| access_error(&error))?;
    Reply::of(&json!({"data": to_hex(&data)}))
}

async fn dma_write(port: Arc<Port>, pasid: Option<Pasid>, iova: Iova, data: Vec<u8>) -> Answer {
    port.access(pasid, iova, Transfer::Write(&data))
        .await
        .map_err(|error| access_error(&error))?;
    Reply::of(&json!({}))
}

async fn page_request(port: Arc<Port>, pasid: Option<Pasid>, pages: Vec<PageRequest>) -> Answer {
    let response = port
        .page_request(pasid, pages)
        .map_err(|denied| CommandError::new(denied_class(denied), denied))?
        .await;
    let name = match response {
        PageResponseCode::Success => "success",
        PageResponseCode::InvalidRequest => "invalid-request",
        PageResponseCode::ResponseFailure => "response-failure",
    };
    Reply::of(&json!({"response": name}))
}

fn access_error(error: &AccessError) -> CommandError {
    let class = match error {
        AccessError::Wraps => ErrorClass::InvalidArgument,
        AccessError::Denied(denied, _) => denied_class(*denied),
        AccessError::PageRequest(..) => ErrorClass::PageRequestFailed,
    };
    CommandError::new(class, error)
}

fn denied_class(denied: Denied) -> ErrorClass {
    match denied {
        Denied::NoEndpoint | Denied::NoPasid(_) => ErrorClass::InvalidArgument,
        Denied::NoPageRequests => ErrorClass::Unsupported,
        Denied::Blocked
        | Denied::Translation
        | Denied::NoMemory
        | Denied::Malformed
        | Denied::Outside
        | Denied::Contended => ErrorClass::TranslationFault,
        Denied::Permission | Denied::Privileged => ErrorClass::PermissionFault,
        Denied::Held => ErrorClass::TryAgain,
    }
}

fn host_error(error: &HostError) -> CommandError {
    let class = match error {
        HostError::NoEndpoint(_) => ErrorClass::InvalidArgument,
        HostError::Unsupported(_) | HostError::Range(_) => ErrorClass::Unsupported,
        HostError::NoMemory(_) => ErrorClass::TryAgain,
        HostError::NoGroup(_)
        | HostError::Unreachable(..)
        | HostError::Missing(_)
        | HostError::Internal(_) => ErrorClass::Internal,
    };
    CommandError::new(class, error)
}

fn endpoint_error(error: &EndpointError) -> CommandError {
    let class = match error {
        EndpointError::Soft(error) => return host_error(error),
        EndpointError::Device(error) => return setup_error(error),
        EndpointError::Iommufd(error) => iommufd_class(error),
        EndpointError::NotSoft(_) | EndpointError::NotDevice(_) | EndpointError::NoFunction(_) => {
            ErrorClass::Unsupported
        }
        EndpointError::NoDescriptor(_)
        | EndpointError::NoQemu
        | EndpointError::Serve(ServeError::Listen(_)) => ErrorClass::InvalidArgument,
        EndpointError::Serve(ServeError::Start(..)) => ErrorClass::Internal,
    };
    CommandError::new(class, error)
}

fn iommufd_class(error: &iommufd::SetupError) -> ErrorClass {
    use iommufd::SetupError as E;
    match error {
        E::Open(..)
        | E::NoDeviceId
        | E::MockWithoutDeviceId
        | E::Exists(_)
        | E::DeviceInUse(..) => ErrorClass::InvalidArgument,
        E::Incompatible(..) | E::NoIommu(_) | E::SharesGroup(..) => ErrorClass::Unsupported,
        E::NoMemory(_) => ErrorClass::TryAgain,
        E::NotIommufd(_) | E::NotKernelLog(_) | E::Bind(..) | E::Attach(..) => ErrorClass::Internal,
    }
}

fn setup_error(error: &SetupError) -> CommandError {
    let class = match error {
        SetupError::EndpointExists(_) | SetupError::NoEndpoint(_) => ErrorClass::InvalidArgument,
        SetupError::Host(error) => return host_error(error),
        _ => ErrorClass::Unsupported,
    };
    CommandError::new(class, error)
}
