"""Files of a data set by name: unpacked in a folder, or inside the archive it is published as.

An archive is never unpacked to disk: its entries are read into memory, by name. One whose entries
would leave the folder (absolute names, .., links) is refused all the same: it is not the file that
was published.
"""

import gzip
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from errors import BadInput


def refuse_outside(path, name, link=False):
    """Raise BadInput for an entry that would not stay in the folder it is unpacked to."""
    entry = PurePosixPath(name.replace("\\", "/"))
    if link or entry.is_absolute() or ".." in entry.parts:
        raise BadInput(f"{path} has an entry that points outside its folder ({name}): "
                       "it is not the published file, fetch it again")


def entries(path, wanted):
    """{entry name: bytes} of the files in a zip or tar archive for which wanted(name) is true."""
    found = {}
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    refuse_outside(path, entry.filename, stat.S_ISLNK(entry.external_attr >> 16))
                    if not entry.is_dir() and wanted(entry.filename):
                        found[entry.filename] = archive.read(entry)
        else:
            with tarfile.open(path) as archive:
                for entry in archive:
                    refuse_outside(path, entry.name, entry.issym() or entry.islnk())
                    if entry.isfile() and wanted(entry.name):
                        found[entry.name] = archive.extractfile(entry).read()
    except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} cannot be unpacked ({error}): fetch it again") from None
    return found


def files(folder, wanted, archives=()):
    """{name: bytes} of all files for which wanted(name) is true, sorted by name.

    They lie in the folder or below it; else in the first of the named archives that it has.
    """
    folder = Path(folder)
    found = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*"))
             if p.is_file() and wanted(p.relative_to(folder).as_posix())}
    if found:
        return {name: p.read_bytes() for name, p in found.items()}
    for archive in archives:
        if (folder / archive).is_file():
            return dict(sorted(entries(folder / archive, wanted).items()))
    return {}


def one(folder, name, archives=()):
    """The bytes of the file `name`, gzipped or not, and where they come from, for messages."""
    ends = (f"/{name}", f"/{name}.gz")
    found = files(folder, lambda entry: f"/{entry}".endswith(ends), archives)
    if not found:
        raise BadInput(f"{folder} has no {name}{''.join(f' and no {a}' for a in archives)}: "
                       "give --data the folder that has it")
    entry, content = next(iter(found.items()))
    source = str(Path(folder) / entry)
    if entry.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput(f"{source} cannot be unpacked ({error}): fetch it again") from None
    return content, source
