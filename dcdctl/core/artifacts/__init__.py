"""Artifacts on disk: a plan that is written first, parts that are each written atomically, and a seal that is written
last.

A corpus, a teacher cache, features and an image index are artifacts. The plan says what the artifact
is made from, so that a killed build resumes and a build of another plan is refused. The seal is the completion marker;
it holds size and SHA-256 of every part. Plan and seal are JSON documents that hold a checksum of their own, and the
seal of an artifact that keeps its plan holds the plan's. Opening an artifact compares these checksums and the
sizes of parts. The SHA-256 of a part is compared when a process first reads the part.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
