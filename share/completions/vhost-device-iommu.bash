# bash completion of vhost-device-iommu: the program knows its command line.
eval "$(vhost-device-iommu completions bash 2>/dev/null)"
