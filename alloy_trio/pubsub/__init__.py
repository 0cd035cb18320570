"""Topics: publish to whoever has subscribed, and subscribe to what may come. Knows nothing of agents; usable for anything."""

from __future__ import annotations

from .._util import export as _export
from ._pubsub import PubSub as PubSub
from ._pubsub import PubSubStatistics as PubSubStatistics
from ._subscription import Lagged as Lagged
from ._subscription import Lost as Lost
from ._subscription import Subscription as Subscription
from ._subscription import SubscriptionStatistics as SubscriptionStatistics

__all__ = ["Lagged", "Lost", "PubSub", "PubSubStatistics", "Subscription", "SubscriptionStatistics"]

_export(globals(), __all__)
