# fish completion of vhost-device-iommu: the program knows its command line.
vhost-device-iommu completions fish 2>/dev/null | source
