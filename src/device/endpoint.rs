// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An endpoint: what it can do and where it is.

use crate::device::SetupError;
use crate::host::mapping::IovaRange;
use crate::host::{EndpointProperties, Owner, PageRequests, PerPasid, ReservedRegion};
use crate::spec::{DomainId, EndpointId, Pasid, ResvMemSubtype};

/// Where accesses of an endpoint go, or those of one of its PASIDs. A PASID is blocked or attached, never in bypass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Residence {
    /// Attached to no domain, and reaching nothing (R23).
    Blocked,
    /// Attached to no domain, and in bypass because the config space says so (B25).
    Bypass,
    /// Attached to a domain.
    Attached(Membership),
}

impl Residence {
    pub fn membership(self) -> Option<Membership> {
        match self {
            Self::Attached(membership) => Some(membership),
            Self::Blocked | Self::Bypass => None,
        }
    }
}

/// An attachment to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    pub domain: DomainId,
    pub page_requests: PageRequests,
}

#[derive(Debug)]
pub(super) struct Endpoint {
    pub properties: EndpointProperties,
    /// The host's reserved regions and the configured ones, ascending and disjoint.
    pub reserved: Vec<ReservedRegion>,
    /// A PASID that is not here is blocked.
    pub residence: PerPasid<Residence>,
    /// The driver answered RESPONSE_FAILURE, or has ended, and has not attached with PAGE_REQUEST since.
    pub page_requests_off: bool,
}

impl Endpoint {
    pub fn new(
        id: EndpointId,
        properties: EndpointProperties,
        configured: &[ReservedRegion],
    ) -> Result<Self, SetupError> {
        let reserved = merge_reserved(id, &properties.reserved, configured)?;
        Ok(Self {
            properties,
            reserved,
            residence: PerPasid::new(Residence::Blocked),
            page_requests_off: false,
        })
    }

    /// Where it belongs while it is attached to no domain (B25). One whose device is the front-end's is in bypass only while
    /// a front-end is connected.
    pub fn unattached(&self, bypass: bool, connected: bool) -> Residence {
        if bypass && (connected || self.properties.owner == Owner::Host) {
            Residence::Bypass
        } else {
            Residence::Blocked
        }
    }

    pub fn membership(&self, pasid: Option<Pasid>) -> Option<Membership> {
        self.residence.get(pasid)?.membership()
    }

    /// Every attachment to a domain.
    pub fn memberships(&self) -> impl Iterator<Item = (Option<Pasid>, Membership)> + '_ {
        self.residence
            .iter()
            .filter_map(|(pasid, residence)| Some((pasid, residence.membership()?)))
    }
}

/// The configured regions, and what they leave of the host's (V61: no overlaps, one MSI region at most). If
/// doorbells are configured, they are those of the guest's machine: the host's are then reserved like anything else.
fn merge_reserved(
    id: EndpointId,
    host: &[ReservedRegion],
    configured: &[ReservedRegion],
) -> Result<Vec<ReservedRegion>, SetupError> {
    let mut merged = configured.to_vec();
    merged.sort_by_key(|region| region.range.first);
    if let Some(pair) = merged
        .windows(2)
        .find(|pair| pair[1].range.first <= pair[0].range.last)
    {
        return Err(SetupError::ReservedRegions(format!(
            "the reserved regions {}-{} and {}-{} overlap: give each address once",
            pair[0].range.first, pair[0].range.last, pair[1].range.first, pair[1].range.last
        )));
    }
    let mut rest: Vec<ReservedRegion> = host.to_vec();
    for region in configured {
        rest = rest
            .into_iter()
            .flat_map(|other| subtract(other, &region.range))
            .collect();
    }
    if configured.iter().any(is_msi) {
        for region in &mut rest {
            region.subtype = ResvMemSubtype::Reserved;
        }
    }
    merged.append(&mut rest);
    merged.sort_by_key(|region| region.range.first);
    let msi = merged.iter().filter(|region| is_msi(region)).count();
    if msi > 1 {
        return Err(SetupError::ReservedRegions(format!(
            "endpoint {id} would have {msi} MSI regions: the specification allows one (V61)"
        )));
    }
    Ok(merged)
}

fn is_msi(region: &ReservedRegion) -> bool {
    region.subtype == ResvMemSubtype::Msi
}

fn subtract(region: ReservedRegion, hole: &IovaRange) -> impl Iterator<Item = ReservedRegion> {
    let (first, last) = (region.range.first.0, region.range.last.0);
    let (below, above) = match region.range.intersection(hole) {
        None => (Some(region.range), None),
        Some(common) => (
            common
                .first
                .0
                .checked_sub(1)
                .filter(|&l| l >= first)
                .and_then(|l| IovaRange::new(first, l)),
            common
                .last
                .0
                .checked_add(1)
                .filter(|&f| f <= last)
                .and_then(|f| IovaRange::new(f, last)),
        ),
    };
    below
        .into_iter()
        .chain(above)
        .map(move |range| ReservedRegion { range, ..region })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(first: u64, last: u64, subtype: ResvMemSubtype) -> ReservedRegion {
        ReservedRegion {
            range: IovaRange::new(first, last).unwrap(),
            subtype,
        }
    }

    #[test]
    fn configured_regions_win_over_the_hosts__v61() {
        use ResvMemSubtype::{Msi, Reserved};
        let merged = merge_reserved(
            EndpointId(1),
            &[
                region(0x1000, 0x8fff, Reserved),
                region(0x1_0000, 0x1_0fff, Reserved),
            ],
            &[region(0x3000, 0x3fff, Msi), region(0x0, 0x1fff, Reserved)],
        );
        assert_eq!(
            merged.unwrap(),
            [
                region(0x0, 0x1fff, Reserved),
                region(0x2000, 0x2fff, Reserved),
                region(0x3000, 0x3fff, Msi),
                region(0x4000, 0x8fff, Reserved),
                region(0x1_0000, 0x1_0fff, Reserved),
            ]
        );
    }

    #[test]
    fn configured_doorbells_take_the_place_of_the_hosts__v61() {
        use ResvMemSubtype::{Msi, Reserved};
        let host = [region(0x800_0000, 0x80f_ffff, Msi)];
        let merged = |configured| merge_reserved(EndpointId(1), &host, &[configured]).unwrap();
        // QEMU's page of an interrupt translation service.
        let page = region(0x809_0000, 0x809_ffff, Msi);
        let before = region(0x800_0000, 0x808_ffff, Reserved);
        let after = region(0x80a_0000, 0x80f_ffff, Reserved);
        assert_eq!(merged(page), [before, page, after]);
        let elsewhere = region(0x1000_0000, 0x1000_ffff, Msi);
        let host = region(0x800_0000, 0x80f_ffff, Reserved);
        assert_eq!(merged(elsewhere), [host, elsewhere]);
        let other = region(0, 0xfff, Reserved);
        assert_eq!(merged(other)[1].subtype, Msi);
    }

    #[test]
    fn a_second_msi_region_or_an_overlap_is_refused__v61() {
        use ResvMemSubtype::{Msi, Reserved};
        let two = [region(0, 0xfff, Msi), region(0x2000, 0x2fff, Msi)];
        assert!(merge_reserved(EndpointId(1), &[], &two).is_err());
        let overlap = [region(0, 0xfff, Msi), region(0xfff, 0x2fff, Reserved)];
        assert!(merge_reserved(EndpointId(1), &[], &overlap).is_err());
    }
}
