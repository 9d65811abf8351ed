"""A page of the library, parsed."""

import html.parser
import re

VOID = {"meta", "img", "br", "link", "input", "hr", "wbr"}


class Page(html.parser.HTMLParser):
    """Checks that elements nest, and collects ids, addresses, pictures and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.addresses, self.images, self.words, self.links = [], [], [], [], [], []
        self.broken = False  # a word by <wbr>
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.broken = tag == "wbr"
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[name] for name in ("src", "href", "xlink:href") if name in found]
        self.links += [found["href"]] if tag == "a" else []
        self.images += [found] if tag == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(self.words.pop() + data if self.broken else data)
        self.broken = False

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))
