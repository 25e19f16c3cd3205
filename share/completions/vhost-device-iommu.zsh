#compdef vhost-device-iommu
# The program knows its command line.
eval "$(vhost-device-iommu completions zsh 2>/dev/null)" && _vhost-device-iommu "$@"
