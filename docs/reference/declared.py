"""Extension of griffe, which reads the source for docs/reference: functions of declared arguments show their keywords.

`dcdctl.cli.declare.takes` makes such a signature when the function is imported; the site is written without importing.
"""

from __future__ import annotations

from typing import Any

import griffe


class Declared(griffe.Extension):
    """Gives each function behind `@takes(ARGUMENTS)` the fields of the dataclass ARGUMENTS as parameters."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        modules = pkg["api"].modules.values()
        owners = [*modules, *(owner for module in modules for owner in module.classes.values())]
        for function in (function for owner in owners for function in owner.functions.values()):
            for decorator in function.decorators:
                if decorator.callable_path == "dcdctl.cli.declare.takes":
                    declared = decorator.value.arguments[0].canonical_path.partition(".")[2]
                    function.parameters = griffe.Parameters(*list(pkg[declared].parameters)[1:])  # without self
                    for parameter in function.parameters:
                        parameter.annotation = _python_type(parameter.annotation, pkg)


def _python_type(annotation: Any, pkg: griffe.Module) -> Any:
    """The first type of `Annotated[...]`, also of an alias of one."""
    if isinstance(annotation, griffe.ExprName | griffe.ExprAttribute) and annotation.canonical_path.startswith(
        "dcdctl.cli."
    ):
        annotation = pkg[annotation.canonical_path.removeprefix("dcdctl.")].value
    is_annotated = isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated"
    return annotation.slice.elements[0] if is_annotated else annotation
