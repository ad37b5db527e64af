"""The software bill of materials of an image: what Debian's package manager and the Python packages in it say they are.

It is read from the image and not from what went into its making. CycloneDX is the format, which scanners take.
"""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from deploy.image.archive import Archive

_DPKG_STATUS = "var/lib/dpkg/status"
_PYTHON_PACKAGE = re.compile(r"opt/lrp-operator/.*\.dist-info/METADATA")


def write(archive: Archive, target: Path) -> None:
    """Write the bill of materials of an image."""
    config = archive.config
    name, _, version = archive.names[0].rpartition(":")
    image = Component(name=name.rpartition("/")[2], version=version, type=ComponentType.CONTAINER, bom_ref="image")
    bom = Bom(components=_components(archive))
    bom.metadata.component = image
    bom.register_dependency(image, bom.components)
    # Both of the image, so that the same image has the same bill.
    bom.metadata.timestamp = datetime.fromisoformat(config["created"])
    bom.serial_number = uuid5(NAMESPACE_URL, json.dumps(config["rootfs"]))
    target.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")


def _components(archive: Archive) -> Iterator[Component]:
    for entry, content in archive.files():
        path = entry.name.removeprefix("./")
        if not content:
            continue
        if path == _DPKG_STATUS:
            for stanza in content.read().strip().split(b"\n\n"):
                fields = BytesParser().parsebytes(stanza, headersonly=True)
                if fields["Status"] == "install ok installed":
                    yield _debian(fields)
        elif _PYTHON_PACKAGE.fullmatch(path):
            yield _python(BytesParser().parse(content, headersonly=True))


def _debian(fields: Message) -> Component:
    name, version = fields["Package"], fields["Version"]
    where = {"arch": fields["Architecture"], "distro": "debian-12"}
    return Component(
        name=name,
        version=version,
        purl=PackageURL("deb", "debian", name, version, where),
        bom_ref=f"deb/{name}:{fields['Architecture']}",
    )


def _python(fields: Message) -> Component:
    name, version = fields["Name"], fields["Version"]
    terms = fields["License-Expression"]
    return Component(
        name=name,
        version=version,
        licenses=[LicenseFactory().make_from_string(terms)] if terms else [],
        purl=PackageURL("pypi", None, name, version),
        bom_ref=f"pypi/{name}",
    )
