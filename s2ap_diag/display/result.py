"""What every result of a measurement can do: become a frame, a picture, and a table in a notebook."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from s2ap_core.errors import InputError

if TYPE_CHECKING:  # masks are compared without pandas and matplotlib, which take seconds to import
    import pandas as pd
    from matplotlib.axes import Axes

SHOWN = 12
"""Rows of details that a notebook shows."""


class Result:
    """A frozen dataclass of numbers and, by layer, batch or whatever ``by`` says, their details.

    A subclass draws itself by :meth:`draw`, and says what its row and its details are where the fields do not.

    Attributes:
        by: what the details are of, in one word; empty where there are none.

    >>> from s2ap_diag import hamming
    >>> h = hamming({"conv.weight": [[1, 0]], "fc.weight": [[1, 1]]}, {"conv.weight": [[0, 1]], "fc.weight": [[1, 1]]})
    >>> h.to_frame("layer")["layers"].to_dict()
    {'conv.weight': 1.0, 'fc.weight': 0.0}
    """

    by: ClassVar[str] = ""

    def row(self) -> dict[str, Any]:
        """Give what is one number or word, by name: the fields that are."""
        return {name: value for name, value in self._fields() if value is None or isinstance(value, str | int | float)}

    def details(self) -> dict[str, Any]:
        """Give the columns of the details by name, each a mapping or a sequence: the fields that are, and not empty."""
        return {
            name: value
            for name, value in self._fields()
            if hasattr(value, "__len__") and not isinstance(value, str) and len(value)
        }

    def draw(self, axes: "Axes") -> None:
        """Draw it on axes."""
        raise NotImplementedError

    def _fields(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]  # type: ignore[arg-type]

    def to_frame(self, by: str | None = None) -> "pd.DataFrame":
        """Make a frame of one row, so that several results can be joined by ``pandas.concat``.

        Args:
            by: the word that the details are of (``layer``, ``batch``): a row for each of them instead.

        Raises:
            InputError: if there are no details of that word.
        """
        import pandas as pd  # not at the top, see above

        if by is None:
            return pd.DataFrame([self.row()])
        if by != self.by or not self.details():
            has = f"it has {self.by!r}" if self.details() else "none were measured"
            raise InputError(f"to_frame({by!r}): no such details in {type(self).__name__}: {has}")
        columns = {name: pd.Series(_plain(column)) for name, column in self.details().items()}
        return pd.DataFrame(columns).rename_axis(by)

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw it on ``axes``, or on a figure of its own (``result.plot().figure.savefig(FILE)``)."""
        if axes is None:
            from s2ap_diag.display.sheet import drawn  # not at the top, see above

            return drawn(self.draw, len(self.to_frame(self.by)) if self.by == "layer" and self.details() else 0)
        self.draw(axes)
        return axes

    def _repr_html_(self) -> str:
        """Show the row, upright, and the first details."""
        name = type(self).__name__
        parts = [f"<b>{name}</b>", self.to_frame().astype(object).T.to_html(header=False, na_rep="–")]
        if self.details():
            parts.append(self.to_frame(self.by).to_html(max_rows=SHOWN, na_rep="–"))
        return "".join(parts)


def _plain(column: Mapping[Any, Any] | Sequence[Any]) -> Any:
    return dict(column) if isinstance(column, Mapping) else list(column)
