// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the configuration space of a PCI function says about address translation (PCI Express Base 6.0, 7.8.8, 10.5).

/// The extended capabilities that matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Address Translation Services.
    pub ats: bool,
    /// Page Request Interface.
    pub pri: bool,
    /// Process Address Space ID: its width in bits.
    pub pasid: Option<u8>,
}

/// Where extended capabilities begin.
const FIRST: usize = 0x100;
/// The length of a function's configuration space with them.
const WHOLE: usize = 4096;
/// A capability takes two doublewords at least: more steps than this are a loop.
const MOST: usize = (WHOLE - FIRST) / 8;

const ATS: u32 = 0x0f;
const PRI: u32 = 0x13;
const PASID: u32 = 0x1b;

/// Reads the list of extended capabilities. A conventional function (256 bytes) has none.
pub(super) fn capabilities(config: &[u8]) -> Capabilities {
    let word = |offset: usize| {
        let bytes = config.get(offset..offset + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let mut found = Capabilities::default();
    let mut offset = FIRST;
    for _ in 0..MOST {
        // All ones: the function does not answer.
        let Some(header) = word(offset).filter(|&header| header != 0 && header != u32::MAX) else {
            break;
        };
        match header & 0xffff {
            ATS => found.ats = true,
            PRI => found.pri = true,
            PASID => found.pasid = word(offset + 4).map(|register| (register >> 8 & 0x1f) as u8),
            _ => {}
        }
        offset = (header >> 20) as usize & !3;
        if offset < FIRST {
            break;
        }
    }
    found
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A configuration space with these capabilities, one after the other.
    pub fn config(ids: &[u32]) -> Vec<u8> {
        let mut config = vec![0; WHOLE];
        for (index, id) in ids.iter().enumerate() {
            let offset = FIRST + 16 * index;
            let next = if index + 1 == ids.len() {
                0
            } else {
                offset + 16
            };
            let header = (next as u32) << 20 | 1 << 16 | id;
            config[offset..offset + 4].copy_from_slice(&header.to_le_bytes());
            // The width of PASIDs: 20.
            config[offset + 5] = 20;
        }
        config
    }

    #[test]
    fn the_list_of_capabilities_is_followed() {
        let all = Capabilities {
            ats: true,
            pri: true,
            pasid: Some(20),
        };
        assert_eq!(capabilities(&config(&[1, ATS, 3, PRI, PASID])), all);
        assert_eq!(capabilities(&config(&[1, 3])), Capabilities::default());
        assert_eq!(capabilities(&[0; 256]), Capabilities::default());
        assert_eq!(capabilities(&[0xff; WHOLE]), Capabilities::default());
    }

    #[test]
    fn a_list_that_leads_nowhere_comes_to_an_end() {
        let mut endless = config(&[ATS]);
        endless[FIRST + 3] = 0x10;
        assert!(capabilities(&endless).ats);
        let mut outside = config(&[PRI]);
        outside[FIRST + 2..FIRST + 4].copy_from_slice(&0xffc1_u16.to_le_bytes());
        assert!(capabilities(&outside).pri);
    }
}
