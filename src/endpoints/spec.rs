// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--endpoint ID[,key=value]...`, and the arguments of `endpoint-add` on the control socket.

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::notation::number;
use crate::spec::{EndpointId, ParseEndpointError};

/// An endpoint as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Its ID.
    pub id: EndpointId,
    /// What stands behind it.
    pub backing: Backing,
    /// The device that it is in QEMU: its `id`, or its path in the tree of objects.
    pub qemu_id: Option<String>,
}

/// What stands behind an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing but this process: accesses come from the control socket, and from a PCI function that is served over
    /// vfio-user on `socket`, if there is one.
    Soft {
        /// The path of its socket.
        socket: Option<PathBuf>,
    },
    /// A physical device.
    Vfio {
        /// Its VFIO character device.
        device: VfioDevice,
        /// Its number in the iommufd, if another process has bound it.
        dev_id: Option<u32>,
    },
    /// A device on the mock bus of a test kernel.
    #[cfg(feature = "iommufd-test")]
    Mock {
        /// Its number as a mock device.
        stdev_id: u32,
        /// Its number in the iommufd.
        dev_id: Option<u32>,
    },
}

/// A VFIO character device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VfioDevice {
    /// To be opened: `/dev/vfio/devices/vfioN`.
    Path(PathBuf),
    /// Inherited, or received over the control socket.
    Fd(RawFd),
}

/// Why an endpoint cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointSpecError {
    /// The ID is none.
    #[error(transparent)]
    Id(#[from] ParseEndpointError),
    /// Not `key=value`.
    #[error("'{0}' is not key=value; the keys are soft, vfio, vfio-fd, dev-id, qemu-id")]
    NotKeyValue(String),
    /// No such key.
    #[error("there is no key '{0}'; the keys are soft, vfio, vfio-fd, dev-id, qemu-id")]
    UnknownKey(String),
    /// A key came twice.
    #[error("'{0}' is given twice")]
    Twice(String),
    /// A value is no number, or too large.
    #[error("'{0}={1}': expected a number")]
    Number(String, String),
    /// Nothing behind `vfio=`.
    #[error("'vfio=' needs a path, such as /dev/vfio/devices/vfio0")]
    EmptyPath,
    /// Nothing behind `soft=`.
    #[error(
        "'soft=' needs the path of a socket; leave it out for an endpoint without a PCI function"
    )]
    EmptySocket,
    /// Nothing behind `qemu-id=`.
    #[error("'qemu-id=' needs the id of a device in QEMU (-device ...,id=ID), or its path")]
    EmptyQemuId,
    /// More than one of the keys that say what stands behind the endpoint.
    #[error("an endpoint is one device: give only one of soft, vfio, vfio-fd, mock")]
    SeveralBackings,
    /// `dev-id` of a software endpoint.
    #[error("'dev-id' is the number of a device in an iommufd; it needs vfio or vfio-fd")]
    DevIdWithoutDevice,
}

impl EndpointSpec {
    /// From an ID and pairs of keys and values.
    ///
    /// # Errors
    /// A key is unknown or given twice, a value is not what its key takes, or keys do not go together.
    pub fn from_pairs<'a>(
        id: EndpointId,
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, EndpointSpecError> {
        let mut seen = BTreeSet::new();
        let mut dev_id = None;
        let mut qemu_id = None;
        let mut backings = Vec::new();
        for (key, value) in pairs {
            if !seen.insert(key) {
                return Err(EndpointSpecError::Twice(key.to_owned()));
            }
            let bad_number = || EndpointSpecError::Number(key.to_owned(), value.to_owned());
            let as_u32 = || {
                number(value)
                    .and_then(|n| u32::try_from(n).ok())
                    .ok_or_else(bad_number)
            };
            match key {
                "vfio" if value.is_empty() => return Err(EndpointSpecError::EmptyPath),
                "vfio" => backings.push(Source::Vfio(VfioDevice::Path(value.into()))),
                "vfio-fd" => {
                    let fd = RawFd::try_from(as_u32()?).map_err(|_| bad_number())?;
                    backings.push(Source::Vfio(VfioDevice::Fd(fd)));
                }
                #[cfg(feature = "iommufd-test")]
                "mock" => backings.push(Source::Mock(as_u32()?)),
                "dev-id" => dev_id = Some(as_u32()?),
                "qemu-id" if value.is_empty() => return Err(EndpointSpecError::EmptyQemuId),
                "qemu-id" => qemu_id = Some(value.to_owned()),
                "soft" if value.is_empty() => return Err(EndpointSpecError::EmptySocket),
                "soft" => backings.push(Source::Soft(value.into())),
                _ => return Err(EndpointSpecError::UnknownKey(key.to_owned())),
            }
        }
        if backings.len() > 1 {
            return Err(EndpointSpecError::SeveralBackings);
        }
        let backing = match backings.pop() {
            Some(Source::Vfio(device)) => Backing::Vfio { device, dev_id },
            #[cfg(feature = "iommufd-test")]
            Some(Source::Mock(stdev_id)) => Backing::Mock { stdev_id, dev_id },
            Some(Source::Soft(_)) | None if dev_id.is_some() => {
                return Err(EndpointSpecError::DevIdWithoutDevice);
            }
            Some(Source::Soft(socket)) => Backing::Soft {
                socket: Some(socket),
            },
            None => Backing::Soft { socket: None },
        };
        Ok(Self {
            id,
            backing,
            qemu_id,
        })
    }

    /// Whether it lives in this process only.
    pub fn is_soft(&self) -> bool {
        matches!(self.backing, Backing::Soft { .. })
    }

    /// Where its PCI function is served over vfio-user.
    pub fn soft_socket(&self) -> Option<&Path> {
        match &self.backing {
            Backing::Soft { socket } => socket.as_deref(),
            _ => None,
        }
    }

    /// The inherited descriptor that it uses.
    pub fn fd(&self) -> Option<RawFd> {
        match self.backing {
            Backing::Vfio {
                device: VfioDevice::Fd(fd),
                ..
            } => Some(fd),
            _ => None,
        }
    }
}

enum Source {
    Soft(PathBuf),
    Vfio(VfioDevice),
    #[cfg(feature = "iommufd-test")]
    Mock(u32),
}

impl FromStr for EndpointSpec {
    type Err = EndpointSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let id = parts.next().unwrap_or_default().parse()?;
        let pairs = parts
            .map(|part| {
                part.split_once('=')
                    .ok_or_else(|| EndpointSpecError::NotKeyValue(part.to_owned()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        Self::from_pairs(id, pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<EndpointSpec, EndpointSpecError> {
        text.parse()
    }

    #[test]
    fn an_endpoint_without_a_device_is_a_software_endpoint() {
        let endpoint = parse("00:05.0").expect("valid");
        assert_eq!(endpoint.id, EndpointId(0x28));
        assert!(endpoint.is_soft());
        assert_eq!(endpoint.soft_socket(), None);
    }

    #[test]
    fn a_software_endpoint_may_have_a_pci_function() {
        let endpoint = parse("00:05.0,soft=/run/pci.sock").expect("valid");
        assert!(endpoint.is_soft());
        assert_eq!(endpoint.soft_socket(), Some(Path::new("/run/pci.sock")));
    }

    #[test]
    fn an_endpoint_names_its_device_by_path_or_descriptor() {
        let device = VfioDevice::Path("/dev/vfio/devices/vfio3".into());
        assert_eq!(
            parse("0x28,vfio=/dev/vfio/devices/vfio3")
                .expect("valid")
                .backing,
            Backing::Vfio {
                device,
                dev_id: None
            }
        );
        let endpoint = parse("40,vfio-fd=7,dev-id=0x2").expect("valid");
        assert_eq!(endpoint.fd(), Some(7));
        assert_eq!(
            endpoint.backing,
            Backing::Vfio {
                device: VfioDevice::Fd(7),
                dev_id: Some(2)
            }
        );
    }

    #[test]
    fn an_endpoint_of_any_kind_may_be_a_device_of_qemu() {
        for text in ["1,qemu-id=dev0", "1,vfio=/a,qemu-id=dev0"] {
            let endpoint = parse(text).expect("valid");
            assert_eq!(endpoint.qemu_id.as_deref(), Some("dev0"), "{text}");
        }
        assert_eq!(parse("1").expect("valid").qemu_id, None);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        use EndpointSpecError as E;
        let key = |key: &str| key.to_owned();
        for (text, error) in [
            ("1,vfio", E::NotKeyValue(key("vfio"))),
            ("1,", E::NotKeyValue(key(""))),
            ("1,colour=red", E::UnknownKey(key("colour"))),
            ("1,soft=", E::EmptySocket),
            ("1,soft=/a,vfio=/b", E::SeveralBackings),
            ("1,soft=/a,dev-id=3", E::DevIdWithoutDevice),
            ("1,vfio=", E::EmptyPath),
            ("1,qemu-id=", E::EmptyQemuId),
            ("1,vfio=/a,vfio=/b", E::Twice(key("vfio"))),
            ("1,vfio=/a,vfio-fd=3", E::SeveralBackings),
            ("1,vfio-fd=-1", E::Number(key("vfio-fd"), key("-1"))),
            (
                "1,vfio-fd=4294967295",
                E::Number(key("vfio-fd"), key("4294967295")),
            ),
            ("1,dev-id=3", E::DevIdWithoutDevice),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
        assert!(matches!(parse(""), Err(E::Id(_))));
        assert!(matches!(parse("00:05"), Err(E::Id(_))));
    }

    #[cfg(not(feature = "iommufd-test"))]
    #[test]
    fn mock_devices_are_for_test_builds_only() {
        let unknown = EndpointSpecError::UnknownKey("mock".to_owned());
        assert_eq!(parse("1,mock=2"), Err(unknown));
    }
}
