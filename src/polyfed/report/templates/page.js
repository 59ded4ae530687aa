"use strict";
(() => {
  const plots = [...document.querySelectorAll(".plot")];
  const hidden = { group: new Set(), split: new Set() };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Plots carry no colours of the page, so that one figure serves the light and the dark scheme.
  const themed = (spec) => {
    const ink = colour("--ink"), soft = colour("--soft"), grid = colour("--grid"), card = colour("--card");
    const layout = spec.layout;
    layout.font = { family: "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif", size: 12, color: soft };
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: card, bordercolor: grid, font: { color: ink } };
    for (const key of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
      Object.assign(layout[key], { gridcolor: grid, linecolor: grid, zerolinecolor: soft, tickcolor: grid });
    }
    for (const trace of spec.data) {
      const meta = trace.meta || {};
      if (meta.ink) { trace.line = { ...trace.line, color: ink }; trace.marker = { ...trace.marker, color: ink }; }
      if (meta.cells) {
        trace.text = trace.z.map((row, i) => row.map((cell, j) =>
          cell === null ? "" : `${meta.rows[i]}, round ${trace.x[j]}: ${meta.cells[cell]}`));
      }
      trace.visible = visible(trace);
    }
    return spec;
  };
  const visible = (trace) => !hidden.group.has(trace.legendgroup) && !hidden.split.has((trace.meta || {}).split);

  const draw = (element) => {
    if (element.hidden) return;
    element.spec = element.spec || JSON.parse(element.querySelector("script").textContent);
    const { data, layout } = themed(element.spec);
    // on a touch screen a drag is for scrolling the page
    if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;
    Plotly.react(element, data, layout, { responsive: true, displayModeBar: false });
    element.drawn = true;
  };
  const redraw = () => plots.filter((element) => element.drawn).forEach(draw);

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      seen.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "600px" });
  plots.forEach((element) => seen.observe(element));
  addEventListener("beforeprint", () => plots.forEach(draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  const toggle = (kind, name, show) => {
    if (show) hidden[kind].delete(name); else hidden[kind].add(name);
    redraw();
  };
  for (const chip of document.querySelectorAll("[data-group]")) {
    chip.addEventListener("click", () => {
      const name = chip.dataset.group, show = hidden.group.has(name);
      toggle("group", name, show);
      for (const twin of document.querySelectorAll("[data-group]")) {
        if (twin.dataset.group === name) twin.setAttribute("aria-pressed", String(show));
      }
    });
  }
  for (const box of document.querySelectorAll("[data-split]")) {
    box.addEventListener("change", () => {
      toggle("split", box.dataset.split, box.checked);
      for (const twin of document.querySelectorAll("[data-split]")) {
        if (twin.dataset.split === box.dataset.split) twin.checked = box.checked;
      }
    });
  }
  for (const card of document.querySelectorAll(".card")) {
    const tabs = [...card.querySelectorAll("[role=tab]")], own = [...card.querySelectorAll(".plot")];
    tabs.forEach((tab, chosen) => tab.addEventListener("click", () => {
      tabs.forEach((each, i) => each.setAttribute("aria-selected", String(i === chosen)));
      own.forEach((each, i) => { each.hidden = i !== chosen; });
      draw(own[chosen]);
    }));
  }
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      getSelection().selectAllChildren(code);
      try { await navigator.clipboard.writeText(code.textContent); } catch { document.execCommand("copy"); }
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
  }
})();
