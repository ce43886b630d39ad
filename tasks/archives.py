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
from pathlib import Path, PureWindowsPath

from errors import BadInput


def refuse_outside(path, name, link=False):
    """Raise BadInput for an entry that would not stay in the folder it is unpacked to."""
    entry = PureWindowsPath(name)                           # it knows / and \\ and drives
    if link or entry.anchor or ".." in entry.parts:
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
    # zipfile has RuntimeError for a password or a way of packing that it does not know
    except (OSError, EOFError, RuntimeError, zlib.error, tarfile.TarError,
            zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise BadInput(f"{path} cannot be unpacked ({reason}): fetch it again") from None
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
    return several(folder, [name], archives)[0]


def several(folder, names, archives=()):
    """(bytes, source) of each of the named files, as `one`, with an archive read only once.

    Of several files of one name the one nearest to the folder counts; BadInput if there are two.
    """
    ends = tuple(f"/{name}{gz}" for name in names for gz in ("", ".gz"))
    found = files(folder, lambda entry: f"/{entry}".endswith(ends), archives)
    return [unpacked(*nearest(folder, name, found, archives)) for name in names]


def nearest(folder, name, found, archives):
    """(bytes, source) of the entry of `found` that is `name` and nearest to the folder."""
    ours = [e for e in found if f"/{e}".endswith((f"/{name}", f"/{name}.gz"))]
    if not ours:
        raise BadInput(f"{folder} has no {name}{''.join(f' and no {a}' for a in archives)}: "
                       "give --data the folder that has it")
    least = min(len(Path(e).parts) for e in ours)
    places = {str(Path(e).parent) for e in ours if len(Path(e).parts) == least}
    if len(places) > 1:
        raise BadInput(f"{folder} has {name} in {' and in '.join(sorted(places)[:3])}: "
                       "give --data one of these folders")
    entry = next(e for e in ours if str(Path(e).parent) in places)
    return found[entry], str(Path(folder) / entry)


def unpacked(content, source):
    """The same with a gzipped file unpacked."""
    if source.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput(f"{source} cannot be unpacked ({error}): fetch it again") from None
    return content, source
