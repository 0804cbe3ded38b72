"""Extension of griffe, which reads the source for docs/reference: functions of declared arguments show their keywords.

`dcdctl.api.arguments.takes` makes such a signature when the function is imported; the site is written without that.
"""

from __future__ import annotations

from typing import Any

import griffe


class Declared(griffe.Extension):
    """Gives each function behind `@takes(ARGUMENTS)` the fields of the dataclass ARGUMENTS as parameters."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        modules = pkg["api"].modules.values()
        # Without the classes that a module imports from another one.
        classes = (owner for module in modules for owner in module.classes.values() if not owner.is_alias)
        owners = [*modules, *classes]
        for function in (function for owner in owners for function in owner.functions.values()):
            for decorator in function.decorators:
                if decorator.callable_path == "dcdctl.api.arguments.takes":
                    declared = decorator.value.arguments[0].canonical_path.partition(".")[2]
                    parameters = []
                    for parameter in list(pkg[declared].parameters)[1:]:  # without self
                        annotation = _declared(parameter.annotation, pkg)
                        if "is_keyword=False" not in str(annotation):
                            parameter.annotation = _python_type(annotation)
                            parameters.append(parameter)
                    function.parameters = griffe.Parameters(*parameters)


def _declared(annotation: Any, pkg: griffe.Module) -> Any:
    """An annotation, or what an alias of the core stands for."""
    if isinstance(annotation, griffe.ExprName | griffe.ExprAttribute) and annotation.canonical_path.startswith(
        "dcdctl.core."
    ):
        return getattr(pkg[annotation.canonical_path.removeprefix("dcdctl.")], "value", annotation)
    return annotation


def _python_type(annotation: Any) -> Any:
    """The first type of `Annotated[...]`."""
    is_annotated = isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated"
    return annotation.slice.elements[0] if is_annotated else annotation
