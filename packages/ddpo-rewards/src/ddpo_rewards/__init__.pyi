from ddpo_rewards.cache import ScoreCache as ScoreCache
from ddpo_rewards.combining import combine as combine
from ddpo_rewards.combining import combine_standardised as combine_standardised
from ddpo_rewards.errors import ImageError as ImageError
from ddpo_rewards.errors import RewardError as RewardError
from ddpo_rewards.images import load_image as load_image
from ddpo_rewards.plugins import PluginFailure as PluginFailure
from ddpo_rewards.plugins import hookimpl as hookimpl
from ddpo_rewards.references import Reference as Reference
from ddpo_rewards.references import parse_reference as parse_reference
from ddpo_rewards.registry import Registry as Registry
from ddpo_rewards.registry import get_reward as get_reward
from ddpo_rewards.registry import list_rewards as list_rewards
from ddpo_rewards.registry import load_registry as load_registry
from ddpo_rewards.reward import Reward as Reward
from ddpo_rewards.reward import RewardResult as RewardResult
from ddpo_rewards.scaffold import new_plugin as new_plugin
from ddpo_rewards.specs import ProbeSpec as ProbeSpec
from ddpo_rewards.specs import ReferenceScore as ReferenceScore
from ddpo_rewards.specs import RewardSpec as RewardSpec
from ddpo_rewards.specs import Weight as Weight
from ddpo_rewards.stream import Scored as Scored
from ddpo_rewards.stream import iter_scores as iter_scores

__version__: str
__all__: list[str]
