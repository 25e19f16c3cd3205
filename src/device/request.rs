// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From bytes to requests: what can be said about a request without knowing the device's state.

use std::mem::size_of;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::device::domain::By;
use crate::host::mapping::{IovaRange, Mapping};
use crate::host::table::Table;
use crate::spec::{
    self, AttachFlags, DetachFlags, DomainId, EndpointId, Features, Gpa, GroupId, Head, MapFlags,
    PageResponseCode, PageResponseFlags, Pasid, RequestType, Status, TAIL_LEN, TableFormat,
};

/// The most bytes of a request's readable part that the device looks at: a longer request is malformed.
pub const MAX_READABLE: usize = size_of::<spec::Probe>();

/// A request whose fields are well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// ATTACH or ATTACH_TABLE.
    Attach(Attach),
    Detach(Detach),
    Map {
        domain: DomainId,
        mapping: Mapping,
    },
    Unmap {
        domain: DomainId,
        range: IovaRange,
    },
    Invalidate {
        domain: DomainId,
        range: IovaRange,
    },
    Probe {
        endpoint: EndpointId,
    },
    PageResponse(PageResponse),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attach {
    pub domain: DomainId,
    pub endpoint: EndpointId,
    pub pasid: Option<Pasid>,
    pub page_request: bool,
    /// What the domain is to translate by; `None` for a table of a format that does not exist.
    pub by: Option<By>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Detach {
    pub domain: DomainId,
    pub endpoint: EndpointId,
    pub pasid: Option<Pasid>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageResponse {
    pub endpoint: EndpointId,
    pub pasid: Option<Pasid>,
    pub group: GroupId,
    pub code: PageResponseCode,
}

/// Why there is no [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The buffer is returned unwritten (R15, R16).
    Unwritten,
    /// The tail gets this status.
    Status(Status),
}

const INVAL: Refusal = Refusal::Status(Status::Inval);

/// Parses the device-readable part of a request. `features` are the negotiated ones: what they do not name does not
/// exist. `readable_len` and `writable_len` are the lengths of the two parts of the buffer.
pub(super) fn parse(
    readable: &[u8],
    readable_len: usize,
    writable_len: usize,
    features: Features,
) -> Result<Request, Refusal> {
    // R15, R16 and the choices beside them: without a head or room for a tail there is nothing to answer.
    if writable_len < TAIL_LEN || readable_len < size_of::<Head>() {
        return Err(Refusal::Unwritten);
    }
    let kind = readable
        .first()
        .and_then(|&kind| RequestType::from_wire(kind))
        .ok_or(Refusal::Unwritten)?;
    let body = Body {
        readable,
        readable_len,
    };
    match kind {
        RequestType::Attach => attach(body.read()?, features),
        RequestType::Detach => detach(body.read()?, features),
        // M47
        RequestType::Map if features.contains(Features::MAP_UNMAP) => map(body.read()?, features),
        RequestType::Unmap if features.contains(Features::MAP_UNMAP) => unmap(body.read()?),
        // P54: reserved is ignored. PROBE is served whenever it is offered, and it always is (P56).
        RequestType::Probe => Ok(Request::Probe {
            endpoint: EndpointId(body.read::<spec::Probe>()?.endpoint.get()),
        }),
        RequestType::PageResponse if features.contains(Features::PAGE_REQUEST) => {
            page_response(body.read()?, features)
        }
        // X94
        RequestType::AttachTable if features.contains(Features::ATTACH_TABLE) => {
            attach_table(body.read()?, features)
        }
        RequestType::Invalidate if features.contains(Features::ATTACH_TABLE) => {
            invalidate(body.read()?)
        }
        RequestType::Map
        | RequestType::Unmap
        | RequestType::PageResponse
        | RequestType::AttachTable
        | RequestType::Invalidate => Err(Refusal::Unwritten),
    }
}

struct Body<'a> {
    readable: &'a [u8],
    readable_len: usize,
}

impl Body<'_> {
    /// The structure, when the readable part is exactly that long. R17: `head.reserved` is ignored.
    fn read<T: FromBytes + KnownLayout + Immutable + Unaligned>(&self) -> Result<T, Refusal> {
        if self.readable_len != size_of::<T>() {
            return Err(INVAL);
        }
        T::read_from_bytes(self.readable).map_err(|_| INVAL)
    }
}

/// A27, X96: a flag whose feature was not negotiated is an unknown flag.
fn attach_flags(wire: u32, features: Features) -> Result<AttachFlags, Refusal> {
    let mut known = AttachFlags::empty();
    known.set(
        AttachFlags::BYPASS,
        features.contains(Features::BYPASS_CONFIG),
    );
    known.set(
        AttachFlags::PAGE_REQUEST,
        features.contains(Features::PAGE_REQUEST),
    );
    known.set(AttachFlags::PASID, features.contains(Features::PASID));
    AttachFlags::from_bits(wire)
        .filter(|&flags| known.contains(flags))
        .ok_or(INVAL)
}

fn attach(wire: spec::Attach, features: Features) -> Result<Request, Refusal> {
    let flags = attach_flags(wire.flags.get(), features)?;
    // Draft 1: a bypass domain has no missing translations to request.
    if flags.contains(AttachFlags::BYPASS | AttachFlags::PAGE_REQUEST) {
        return Err(INVAL);
    }
    Ok(Request::Attach(Attach {
        domain: DomainId(wire.domain.get()),
        endpoint: EndpointId(wire.endpoint.get()),
        pasid: pasid(flags.contains(AttachFlags::PASID), wire.pasid.get())?,
        page_request: flags.contains(AttachFlags::PAGE_REQUEST),
        by: Some(if flags.contains(AttachFlags::BYPASS) {
            By::Bypass
        } else {
            By::Mappings
        }),
    }))
}

fn attach_table(wire: spec::AttachTable, features: Features) -> Result<Request, Refusal> {
    // X95: there is no flag BYPASS here.
    let flags = attach_flags(wire.flags.get(), features - Features::BYPASS_CONFIG)?;
    // X96
    if wire.reserved != [0; 20] {
        return Err(INVAL);
    }
    // Whether the format exists is for the endpoint to say (X97).
    let table = TableFormat::from_wire(wire.format.get()).map(|format| Table {
        format,
        input_bits: wire.input_bits,
        granule: wire.granule,
        root: Gpa(wire.table.get()),
        attributes: wire.attributes.get(),
    });
    // X96
    if table.is_some_and(|table| !table.is_possible()) {
        return Err(INVAL);
    }
    Ok(Request::Attach(Attach {
        domain: DomainId(wire.domain.get()),
        endpoint: EndpointId(wire.endpoint.get()),
        pasid: pasid(flags.contains(AttachFlags::PASID), wire.pasid.get())?,
        page_request: flags.contains(AttachFlags::PAGE_REQUEST),
        by: table.map(By::Table),
    }))
}

/// A26 for ATTACH, X9 for ATTACH_TABLE, X63 for PAGE_RESPONSE: without the flag the field must be zero.
fn pasid(flag: bool, field: u32) -> Result<Option<Pasid>, Refusal> {
    match (flag, field) {
        (true, pasid) => Ok(Some(Pasid(pasid))),
        (false, 0) => Ok(None),
        (false, _) => Err(INVAL),
    }
}

fn detach(wire: spec::Detach, features: Features) -> Result<Request, Refusal> {
    let pasid = if features.contains(Features::PASID) {
        let flags = DetachFlags::from_bits(wire.flags.get()).ok_or(INVAL)?;
        flags
            .contains(DetachFlags::PASID)
            .then(|| Pasid(wire.pasid.get()))
    } else {
        // D35: reserved, and ignored.
        None
    };
    Ok(Request::Detach(Detach {
        domain: DomainId(wire.domain.get()),
        endpoint: EndpointId(wire.endpoint.get()),
        pasid,
    }))
}

fn map(wire: spec::Map, features: Features) -> Result<Request, Refusal> {
    // M42; M46: MMIO exists only when it was negotiated.
    let flags = MapFlags::from_bits(wire.flags.get())
        .filter(|flags| !flags.contains(MapFlags::MMIO) || features.contains(Features::MMIO))
        .ok_or(INVAL)?;
    let (first, last) = (wire.virt_start.get(), wire.virt_end.get());
    // M46
    let range = IovaRange::new(first, last)
        .filter(|_| first != last)
        .ok_or(INVAL)?;
    Ok(Request::Map {
        domain: DomainId(wire.domain.get()),
        mapping: Mapping {
            range,
            gpa: Gpa(wire.phys_start.get()),
            flags,
        },
    })
}

fn unmap(wire: spec::Unmap) -> Result<Request, Refusal> {
    // U48
    if wire.reserved.get() != 0 {
        return Err(INVAL);
    }
    Ok(Request::Unmap {
        domain: DomainId(wire.domain.get()),
        range: IovaRange::new(wire.virt_start.get(), wire.virt_end.get()).ok_or(INVAL)?,
    })
}

fn invalidate(wire: spec::Invalidate) -> Result<Request, Refusal> {
    // X102: no flag is defined.
    if wire.flags.get() != 0 {
        return Err(INVAL);
    }
    Ok(Request::Invalidate {
        domain: DomainId(wire.domain.get()),
        range: IovaRange::new(wire.virt_start.get(), wire.virt_end.get()).ok_or(INVAL)?,
    })
}

fn page_response(wire: spec::PageResponse, features: Features) -> Result<Request, Refusal> {
    let flags = PageResponseFlags::from_bits(wire.flags.get())
        .filter(|flags| flags.is_empty() || features.contains(Features::PASID))
        .ok_or(INVAL)?;
    if wire.reserved != [0; 8] {
        return Err(INVAL);
    }
    Ok(Request::PageResponse(PageResponse {
        endpoint: EndpointId(wire.endpoint.get()),
        pasid: pasid(flags.contains(PageResponseFlags::PASID), wire.pasid.get())?,
        group: GroupId(wire.group_id.get()),
        code: PageResponseCode::from_wire(wire.code.get()).ok_or(INVAL)?,
    }))
}
