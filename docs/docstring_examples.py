"""A Griffe extension: `Example:` in a docstring becomes `Examples:`, the only section that Griffe shows as code."""

import re

import griffe


class DocstringExamples(griffe.Extension):
    """Renames the section in each docstring."""

    def on_object(self, *, obj, **kwargs):
        """Rename the section in the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
