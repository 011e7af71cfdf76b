"use strict";
// Where one points at a chart, all charts tell their values at that step. The page is whole without this.
(() => {
  const told = JSON.parse(document.getElementById("readings").textContent);
  const end = JSON.parse(document.getElementById("end").textContent);
  const figures = [...document.querySelectorAll("figure[data-chart]")];
  const pictures = [...document.querySelectorAll("svg.curves")];
  const cursors = [...document.querySelectorAll("line.cursor")];
  let share = null;

  const nearest = (points, step) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] <= step) low = middle; else high = middle;
    }
    return Math.abs(points[high][0] - step) < Math.abs(points[low][0] - step) ? points[high] : points[low];
  };

  const show = (at) => {
    share = at === null ? null : Math.min(1, Math.max(0, at));
    for (const cursor of cursors) {
      cursor.setAttribute("visibility", share === null ? "hidden" : "visible");
      cursor.setAttribute("x1", `${100 * (share ?? 0)}%`);
      cursor.setAttribute("x2", `${100 * (share ?? 0)}%`);
    }
    for (const figure of figures) {
      const step = end * (share ?? 0);
      const parts = (told[figure.dataset.chart] || []).filter(([, points]) => points.length).map(([name, points]) => {
        const [x, text] = nearest(points, step);
        return `${name} ${text} (step ${x.toLocaleString("en")})`;
      });
      figure.querySelector("output").textContent = share === null ? "" : parts.join("  ·  ");
      figure.classList.toggle("read", share !== null);
    }
  };

  for (const picture of pictures) {
    picture.setAttribute("tabindex", "0");
    const point = (event) => {
      const box = picture.getBoundingClientRect();
      show((event.clientX - box.left) / box.width);
    };
    picture.addEventListener("pointermove", point);
    picture.addEventListener("pointerdown", point);
    picture.addEventListener("pointerleave", () => show(null));
    picture.addEventListener("blur", () => show(null));
    picture.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -0.01, ArrowRight: 0.01 }[event.key];
      if (event.key === "Escape") show(null);
      if (move === undefined) return;
      event.preventDefault();
      show((share ?? 0.5) + move);
    });
  }
  // On paper everything is open.
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
})();
