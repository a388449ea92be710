"""The saga's reader behind the demo's faults. It has a process of its own, because OCR keeps a processor busy."""

from __future__ import annotations

import threading

from sagalog.agents import Context, agent
from sagalog.agents.invoices import agents as invoices
from sagalog.agents.invoices import ocr as ocr_engine
from sagalog.agents.invoices.models import Invoice
from story.faults import fail_if_told

# The models load while the host joins its group, instead of when the first document comes.
threading.Thread(target=ocr_engine.engine, name="ocr-models", daemon=True).start()


@agent(invoices.read.name, concurrency=invoices.READERS)
def ocr(document: invoices.Document, ctx: Context) -> Invoice:
    fail_if_told(invoices.read.name, ctx)
    return invoices.read(document)


agents = (ocr,)
