"""Networks by name, and their weights.

networks      build_model("resnet50", num_classes=100), and every name that it takes
small_resnet  small networks for CPUs
convolution   convolutions as matrix products, for CPUs
others        any network of torchvision or timm under its library's name
hub           the table of published weights
weights       weights from files: read without running code, fitted to a network
download      the one downloader, for data sets too
formats       a trained network in other people's formats
needed        optional packages
"""
