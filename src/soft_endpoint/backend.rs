// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The function as the vfio-user library sees it: regions, interrupts, resets.

use std::fs::File;
use std::io;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE,
    VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion};

use crate::os::eventfd;
use crate::soft_endpoint::interrupts::InterruptKind;
use crate::soft_endpoint::pci_function::{PciFunction, Region};

fn kind(index: u32) -> Option<InterruptKind> {
    // The order of vfio_pci: INTx, MSI, MSI-X.
    [InterruptKind::Intx, InterruptKind::Msi, InterruptKind::Msix]
        .get(index as usize)
        .copied()
}

/// The interrupts, in the order of vfio-pci.
pub(super) fn irqs() -> Vec<IrqInfo> {
    (0..VFIO_PCI_NUM_IRQS)
        .map(|index| {
            let (flags, count) = match kind(index) {
                Some(InterruptKind::Intx) => (
                    VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED,
                    1,
                ),
                Some(kind) => (
                    VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE,
                    kind.vectors().into(),
                ),
                // QEMU warns where it is missing. This function has no errors to signal.
                None if index == VFIO_PCI_ERR_IRQ_INDEX => (VFIO_IRQ_INFO_EVENTFD, 1),
                None => (0, 0),
            };
            IrqInfo {
                index,
                flags,
                count,
            }
        })
        .collect()
}

/// The region of an index: the BARs by their numbers, then the ROM that there is not, then configuration space.
fn place(index: u32) -> Option<Region> {
    match index {
        VFIO_PCI_CONFIG_REGION_INDEX => Some(Region::Config),
        0..=5 => Some(Region::Bar(index as usize)),
        _ => None,
    }
}

/// The regions, in the order of vfio-pci.
pub(super) fn regions() -> Vec<ServerRegion> {
    (0..VFIO_PCI_NUM_REGIONS)
        .map(|index| {
            let size = place(index).map_or(0, PciFunction::length);
            ServerRegion {
                region_info: vfio_region_info {
                    argsz: size_of::<vfio_region_info>() as u32,
                    index,
                    size,
                    flags: match size {
                        0 => 0,
                        _ => VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
                    },
                    ..Default::default()
                },
                sparse_areas: Vec::new(),
                mmap_fd: None,
            }
        })
        .collect()
}

/// Carries out what the library is asked for.
pub(super) struct Backend<'a> {
    pub(super) device: &'a PciFunction,
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

impl Backend<'_> {
    fn place(region: u32) -> io::Result<Region> {
        place(region).ok_or_else(|| invalid(format!("there is no region {region}")))
    }
}

impl ServerBackend for Backend<'_> {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.device
            .read(Self::place(region)?, offset, data)
            .map_err(invalid)
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device
            .write(Self::place(region)?, offset, data)
            .map_err(invalid)
    }

    /// Not needed: guest memory is reached through the IOMMU, whose front-end shares it.
    fn dma_map(
        &mut self,
        _flags: DmaMapFlags,
        _offset: u64,
        _address: u64,
        _size: u64,
        _fd: Option<File>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, _address: u64, _size: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.device.reset();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> io::Result<()> {
        if index == VFIO_PCI_ERR_IRQ_INDEX {
            return Ok(());
        }
        let kind = kind(index).ok_or_else(|| invalid(format!("there is no interrupt {index}")))?;
        let vectors = u32::from(kind.vectors());
        if start.checked_add(count).is_none_or(|end| end > vectors) {
            let desc = format!("{kind:?} has {vectors} vectors, not {start} and {count} more");
            return Err(invalid(desc));
        }
        let interrupts = self.device.function().interrupts();
        const NONE: u32 = VFIO_IRQ_SET_DATA_NONE;
        const TRIGGER: u32 = VFIO_IRQ_SET_ACTION_TRIGGER;
        match flags {
            _ if flags == TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD => {
                let triggers = match fds.len() {
                    0 => (0..count).map(|_| None).collect(),
                    given if given == count as usize => fds
                        .into_iter()
                        .map(|fd| eventfd::take(fd).map(Some))
                        .collect::<io::Result<_>>()?,
                    given => {
                        return Err(invalid(format!("{given} descriptors for {count} vectors")));
                    }
                };
                interrupts.set_triggers(kind, start as usize, triggers);
                interrupts.deliver();
                Ok(())
            }
            _ if flags == TRIGGER | NONE && count == 0 => {
                interrupts.disable(kind);
                Ok(())
            }
            _ if kind == InterruptKind::Intx && flags == VFIO_IRQ_SET_ACTION_MASK | NONE => {
                interrupts.mask_intx(true);
                Ok(())
            }
            _ if kind == InterruptKind::Intx && flags == VFIO_IRQ_SET_ACTION_UNMASK | NONE => {
                interrupts.mask_intx(false);
                interrupts.deliver();
                Ok(())
            }
            _ => Err(invalid(format!(
                "flags {flags:#x} are not supported for {kind:?}"
            ))),
        }
    }
}
