"""Files of a data set by name: unpacked in a folder, or inside the archive it is published as.

Entries of an archive are read into memory and never unpacked to disk. An archive with an entry that
would leave its folder (an absolute name, .., a link) is refused: it is not the published file.
"""

import bz2
import gzip
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PureWindowsPath

from errors import BadInput

UNPACK = {".gz": gzip.decompress, ".bz2": bz2.decompress}


def refuse_outside(path, name, link):
    """Raise BadInput for an entry that would not stay in the folder it is unpacked to."""
    entry = PureWindowsPath(name)                           # it knows / and \\ and drives
    if link or entry.anchor or ".." in entry.parts:
        raise BadInput(f"{path} has an entry that points outside its folder ({name}): "
                       "it is not the published file, fetch it again")


def entries(path, wanted):
    """{entry name: bytes} of the files in a zip or tar archive for which wanted(name) is true."""
    out = {}
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    refuse_outside(path, entry.filename, stat.S_ISLNK(entry.external_attr >> 16))
                    if not entry.is_dir() and wanted(entry.filename):
                        out[entry.filename] = archive.read(entry)
        else:
            with tarfile.open(path) as archive:
                for entry in archive:
                    refuse_outside(path, entry.name, entry.issym() or entry.islnk())
                    if entry.isfile() and wanted(entry.name):
                        out[entry.name] = archive.extractfile(entry).read()
    # zipfile has RuntimeError for a password or a way of packing that it does not know
    except (OSError, EOFError, RuntimeError, zlib.error, tarfile.TarError,
            zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise BadInput(f"{path} cannot be unpacked ({reason}): fetch it again") from None
    return out


def files(folder, wanted, archives=()):
    """{name: bytes} of all files for which wanted(name) is true, sorted by name.

    They lie in the folder or below it; else in the first of the named archives that it has.
    """
    folder = Path(folder)
    paths = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    if any(map(wanted, paths)):
        return {name: p.read_bytes() for name, p in paths.items() if wanted(name)}
    for archive in archives:
        if (folder / archive).is_file():
            return dict(sorted(entries(folder / archive, wanted).items()))
    return {}


def named(folder, names, archives=()):
    """[(bytes, source for messages)] of the named files, packed (.gz, .bz2) or not.

    names   "a or b" is the first of these that there is
    Of several files of one name the one nearest to the folder counts; BadInput if there are two.
    """
    ends = {one: tuple(f"/{one}{packed}" for packed in ("", *UNPACK))
            for name in names for one in name.split(" or ")}
    contents, out = files(folder, lambda e: f"/{e}".endswith(sum(ends.values(), ())), archives), []
    for name in names:
        for one in name.split(" or "):
            if ours := [e for e in contents if f"/{e}".endswith(ends[one])]:
                break
        else:
            where = "".join(f", unpacked or in {archive}" for archive in archives)
            raise BadInput(f"{folder} has no {name}{where}: give --data the folder that has it")
        depth = min(len(Path(e).parts) for e in ours)
        ours = [e for e in ours if len(Path(e).parts) == depth]
        places = sorted({str(Path(e).parent) for e in ours})
        if len(places) > 1:
            raise BadInput(f"{folder} has {one} in {' and in '.join(places[:3])}: "
                           "give --data one of these folders")
        source = Path(folder) / ours[0]
        try:
            out.append((UNPACK.get(source.suffix, bytes)(contents[ours[0]]), str(source)))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise BadInput(f"{source} cannot be unpacked ({error}): fetch it again") from None
    return out
