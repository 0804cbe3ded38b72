"""Whether a teacher pays, all steps in one call and one report: on the user's data (`run_study`) and on built-in scenes
(`run_demo`)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
