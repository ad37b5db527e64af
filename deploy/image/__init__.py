"""The images: `make image` builds both, with whichever of docker, podman and buildah is there.

    agent.Dockerfile, controller.Dockerfile   one for each role
    trim.sh       what both leave out of Debian
    __main__.py   the command
    build.py      one build: the context, the labels, and build/images/lrp-ROLE.tar with its bill of materials
    tools.py      docker, podman, buildah
    base.py       a stand-in for the base image, where no registry can be reached
    settings.py   how this machine reaches Debian and PyPI, told to a build and not to its image
    archive.py    what is in a built image: its layers, files and size
    sbom.py       its software bill of materials

The archives are what `docker load`, `podman load`, `ctr -n k8s.io images import` and `kind load image-archive` take.
"""
