"""Files of random expert bytes, and a disk under them that tests can slow down and break."""

from storage.cache_rig import NBYTES, PARTS, SHAPES, CacheRig, MakeCacheRig
from storage.compiled_user import CompiledUser
from storage.disk import Disk
from storage.expert_files import ExpertFiles, LayerShape

__all__ = [
    "NBYTES",
    "PARTS",
    "SHAPES",
    "CacheRig",
    "MakeCacheRig",
    "CompiledUser",
    "Disk",
    "ExpertFiles",
    "LayerShape",
]
