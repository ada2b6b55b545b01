for (const field of document.querySelectorAll("input[data-filters]")) {
  const rows = document.querySelectorAll("#" + field.dataset.filters + " tbody tr");
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
