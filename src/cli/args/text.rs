// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `--help` says besides the options.
//!
//! Commands are broken by hand at 76 columns, and clap wraps at [`WIDTH`]: so they can be pasted, and
//! `tests/examples.rs` does it.

/// Columns of the help, on whatever terminal.
pub(super) const WIDTH: usize = 80;

pub(super) const USAGE: &str = "\
vhost-device-iommu {--socket-path <PATH> | --fd <N|NAME>} --endpoint <ID>...
                          [OPTIONS]
       vhost-device-iommu viot --iommu <BDF> {--endpoint <BDF> | --bus <BUS>}...
                          [--header] [-o <FILE>]
       vhost-device-iommu ctl <PATH> <COMMAND>...
       vhost-device-iommu check [--endpoint <ID,vfio=PATH>]... [--bind] [--json]
       vhost-device-iommu completions <SHELL>
       vhost-device-iommu --print-capabilities";

pub(super) const VIOT_USAGE: &str = "\
vhost-device-iommu viot --iommu <BDF> {--endpoint <BDF> | --bus <BUS>}...
                               [--header] [-o <FILE>]";

pub(super) const EXAMPLES: &str = "\
Examples:
  A software endpoint at 00:05.0, driven over the control socket:
    vhost-device-iommu --socket-path /run/iommu.sock \\
        --endpoint 00:05.0 --control /run/iommu.ctl
    vhost-device-iommu ctl /run/iommu.ctl status

  QEMU with that endpoint, the IOMMU at 00:04.0, and the ACPI table that tells
  the guest which devices the IOMMU translates:
    vhost-device-iommu viot --iommu 00:04.0 --endpoint 00:05.0 -o viot.bin
    qemu-system-x86_64 -machine q35 -m 1G \\
        -object memory-backend-memfd,id=mem,size=1G,share=on \\
        -numa node,memdev=mem -chardev socket,id=c,path=/run/iommu.sock \\
        -device vhost-user-test-device-pci,id=io,chardev=c,addr=04.0 \\
        -set device.io.virtio-id=23 -set device.io.num_vqs=2 \\
        -set device.io.vq_size=1024 -set device.io.config_size=40 \\
        -acpitable sig=VIOT,rev=0,data=viot.bin -device edu,addr=05.0

  A software endpoint with a PCI function, for QEMU's vfio-user-pci:
    vhost-device-iommu --socket-path /run/iommu.sock \\
        --endpoint 00:05.0,soft=/run/pci.sock

  A physical device, bound to vfio-pci, which the guest sees at 00:06.0:
    vhost-device-iommu --socket-path /run/iommu.sock \\
        --endpoint 00:06.0,vfio=/dev/vfio/devices/vfio0

Exit status: 0 after SIGTERM, SIGINT or SIGHUP, or when the front-end closes
the connected socket of --fd; 1 when something failed; 2 when the command line
cannot be understood.";

pub(super) const CHECK_STATUS: &str = "\
Exit status: 0 when the machine has all that serving devices needs; 1 when
something is missing.";

pub(super) const CTL_EXAMPLES: &str = "\
Commands:
  status
  counters [format=prometheus]
  waiting
  top
      Show what happens, until q is pressed; without a terminal, once
  mappings domain=N [--svg FILE]
      With --svg it draws a picture of the address space
  endpoint endpoint=ID
  endpoint-add endpoint=ID [soft=PATH | vfio=PATH | vfio-fd=N] [dev-id=N]
      [qemu-id=ID]
  endpoint-remove endpoint=ID
  reattach
  dma-read endpoint=ID iova=N length=N [pasid=N]
  dma-write endpoint=ID iova=N data=HEX [pasid=N]
  translate endpoint=ID iova=N [pasid=N]
  page-request endpoint=ID pages=IOVA:ACCESS[,IOVA:ACCESS]... [pasid=N]
      ACCESS is one or more of r, w, x (execute), p (privileged)

Numbers are decimal, or hexadecimal after 0x.

Examples:
  Ask the guest's driver for two pages:
    vhost-device-iommu ctl /run/iommu.ctl page-request endpoint=00:05.0 \\
        pages=0x1000:r,0x2000:rw

  The same client with a command as it goes over the socket:
    vhost-device-iommu ctl /run/iommu.ctl \\
        '{\"execute\":\"counters\",\"arguments\":{\"format\":\"json\"}}'

Exit status: 0 with the answer on standard output; 1 with an error on standard
error.";
