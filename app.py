"""The demo as a Hugging Face Space, or wherever `python app.py` is all that a host runs; see docs/serve.md.

The environment variable `SED_MODEL` names the model: a folder, or OWNER/NAME on the Hub. The default is the bundled toy
model.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("src")))  # a Space holds the sources, but does not install them

from sed_hf.demo import serve_demo

if __name__ == "__main__":
    serve_demo(os.environ.get("SED_MODEL") or None)
