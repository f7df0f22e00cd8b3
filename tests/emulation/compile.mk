# The CUDA kernels through nvcc, for every architecture of a release; and which of their lines the
# emulation runs. Included by the Makefile, after emulation.mk.
NVCC ?= $(CUDA_HOME)/bin/nvcc
ARCHITECTURES := 80 86 89 90a 100 120
CUDA_BUILD := $(BUILD)/cuda
NVCC_FLAGS := -std=c++17 --expt-relaxed-constexpr -O3 -Xptxas -v -Icsrc/kernels \
  $(foreach arch,$(ARCHITECTURES),-gencode arch=compute_$(arch),code=sm_$(arch))

# The log is kept under its name only where the compilation succeeded.
$(CUDA_BUILD)/%.log: csrc/kernels/%.cu
	@mkdir -p $(@D)
	@echo "  compiling $<"
	@part=$@.$$$$; nice $(NVCC) $(NVCC_FLAGS) -MD -MT $@ -MF $(CUDA_BUILD)/$*.d -c $< \
	  -o $$part.o >$$part 2>&1 || { cat $$part; rm -f $$part*; exit 1; }; \
	  rm -f $$part.o && mv $$part $@
-include $(wildcard $(CUDA_BUILD)/*.d)

.PHONY: cuda-compile cuda-logs
cuda-compile:
ifeq ($(wildcard $(NVCC)),)
	@echo "== CUDA kernels through nvcc: skipped, no $(NVCC)"
else
	@echo "== CUDA kernels through nvcc"
	@$(MAKE) --no-print-directory -j2 cuda-logs
	@$(PYTHON) tests/registers.py $(CUDA_BUILD)/registers.md $(CUDA_LOGS)
endif
CUDA_LOGS := $(KERNELS:csrc/kernels/%.cu=$(CUDA_BUILD)/%.log)
cuda-logs: $(CUDA_LOGS)

# Templates have a line once for each instance: a line counts as run where any of them ran.
COVERAGE := $(EMULATION)/coverage
.PHONY: coverage-kernels coverage-runs
coverage-kernels:
	@echo "== lines of the CUDA kernels that the emulation runs"
	@find $(COVERAGE) -name '*.gcda' -delete 2>/dev/null || true
	@$(MAKE) --no-print-directory -j2 coverage-runs
	@$(PYTHON) tests/kernel_coverage.py $(COVERAGE)
coverage-runs: $(patsubst tests/kernels/test_%.cpp,run-coverage-%,$(wildcard tests/kernels/test_*.cpp))
