"""Builders of panels, and of the queries that most panels have."""

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import stat, table, timeseries
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = common.DataSourceRef(type_val="prometheus", uid="$datasource")

Query = tuple[str, str]  # PromQL and legend


def target(query: Query, ref: str) -> Dataquery:
    """Return a query over time."""
    expression, legend = query
    return Dataquery().datasource(SOURCE).expr(expression).legend_format(legend).range().ref_id(ref)


def number(
    title: str, expression: str, description: str, unit: str = "short", red_from: float | None = None
) -> stat.Panel:
    """Return a panel with one number. It is red from `red_from` on."""
    steps = [dashboard.Threshold(value=None, color="green")]
    if red_from is not None:
        steps.append(dashboard.Threshold(value=red_from, color="red"))
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .with_target(target((expression, title), "A"))
        .unit(unit)
        .thresholds(builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps))
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.AREA)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .height(4)
        .span(4)
    )


def graph(
    title: str, description: str, *queries: Query, unit: str = "short", stacked: bool = False
) -> timeseries.Panel:
    """Return a panel with lines over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(30 if stacked else 5)
        .show_points(common.VisibilityMode.NEVER)
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
        .height(8)
        .span(8)
    )
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    for ref, query in zip("ABCD", queries, strict=False):
        panel.with_target(target(query, ref))
    return panel


def listing(title: str, description: str, expression: str, *hidden: str) -> table.Panel:
    """Return a panel with one row for each series, without the columns `hidden`."""
    query = Dataquery().datasource(SOURCE).expr(expression).instant().format(PromQueryFormat.TABLE).ref_id("A")
    hide = [dashboard.DynamicConfigValue(id_val="custom.hidden", value=True)]
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .with_target(query)
        .no_value("none")
        .override_by_regexp(f"/^({'|'.join(hidden)})$/", hide)
        .height(8)
        .span(8)
    )


def by_model(metric: str) -> str:
    """Return a metric of the cluster, by model."""
    return f'max by (model) ({metric}{{model=~"$model"}})'


def rate(metric: str, *by: str, **labels: str) -> str:
    """Return the rate of a counter per second, summed by these labels, where other labels match these expressions."""
    selectors = ", ".join(f'{name}=~"{value}"' for name, value in labels.items())
    series = f"{metric}{{{selectors}}}" if selectors else metric
    grouping = f" by ({', '.join(by)}) " if by else ""
    return f"sum{grouping}(rate({series}[$__rate_interval]))"


def quantile(share: float, histogram: str, *by: str) -> str:
    """Return the time, in seconds, that this share of the observations does not exceed."""
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', 'le', *by)})"


def quantiles(histogram: str) -> list[Query]:
    """Return three quantiles of a histogram."""
    return [(quantile(share, histogram), f"p{share * 100:g}") for share in (0.5, 0.9, 0.99)]
