"""A release: `make release` builds all that is published into dist/, and `make publish` pushes the images.

    checks.py     whether this tree is a release: one version everywhere, an entry in the changelog, nothing uncommitted
    artefacts.py  each thing that is published: wheel and source, images, chart, checksums
    publish.py    images of several architectures, under one name, into a registry
    __main__.py   the commands

The version is said in one place, `lrp_operator.__version__`; the chart's two lines are checked against it. The same
commit gives the same bytes: times are those of the commit (SOURCE_DATE_EPOCH), and what order is free is sorted. Of the
images that holds with podman and buildah, and for as long as Debian's packages are the same.
"""
