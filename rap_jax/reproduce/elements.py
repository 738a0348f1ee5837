"""Elements of an HTML page, in which every text is escaped unless it is an element itself."""

import base64
import html

_EMPTY = frozenset({"img", "meta"})


class Html(str):
    """Markup; only `element` and `joined` make it."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str) -> Html:
    """One element.

    Args:
      name: of the tag.
      children: elements, or texts, which are escaped.
      attributes: a name may end in an underscore (`class_`) and has hyphens for its others; empty ones are left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items() if value
    )
    return Html(f"<{name}{written}>" + ("" if name in _EMPTY else f"{joined(*children)}</{name}>"))


def joined(*children: str) -> Html:
    """Elements and texts in a row; texts are escaped."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def image(png: bytes, words: str) -> Html:
    """A picture inside the page, with its caption."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return element("figure", element("img", src=source, alt=words), element("figcaption", words))


def table(
    header: tuple[str, ...], rows: list[tuple[str, ...]], *, class_: str = "list", ids: tuple[str, ...] = ()
) -> Html:
    """A table inside a box in which it scrolls where the screen is narrow.

    Args:
      header: of the columns.
      rows: cells, texts or elements.
      class_: of the table.
      ids: of the rows, for links to them; none or one for each row.
    """
    names = ids or ("",) * len(rows)
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    body = [
        element("tr", *(element("td", cell) for cell in row), id=name) for name, row in zip(names, rows, strict=True)
    ]
    inner = element("table", element("thead", head), element("tbody", *body), class_=class_)
    return element("div", inner, class_="scroll", tabindex="0")
